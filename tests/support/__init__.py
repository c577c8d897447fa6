"""Helpers of tests with real servers: processes, clients, proxies, Redis and PostgreSQL."""
