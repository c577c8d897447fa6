"""The Django project of the benchmarks: one channel, sessions, history in Redis, and `AuthMiddlewareStack`."""
