"""What any registry, driver and plugin must do, as programs that check it."""
