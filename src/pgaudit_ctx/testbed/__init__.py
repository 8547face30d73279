"""What the pytest plugin runs on: a server, a database that is watched, expectations."""
