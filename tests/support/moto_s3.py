"""Run moto's server, with the arguments that it takes.

For each request moto asks the disk which services it has, and looks twice for the one that a host belongs to. That is a
third of the time that a request takes, and the answer is always the same; here it is looked for once.
"""

from functools import cache

from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import main

if __name__ == "__main__":
    remembered = cache(DomainDispatcherApplication.get_backend_for_host)
    setattr(DomainDispatcherApplication, "get_backend_for_host", remembered)  # noqa: B010 - mypy takes no other method
    main()
