"""The HTTP application, the server and the command line of Moorage."""
