"""A Django project for the benchmark of the fan-out: one channel, sessions, history in Redis, `AuthMiddlewareStack`."""
