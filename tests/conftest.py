"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite",
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("long", settings.get_profile("suite"), max_examples=3000)
settings.load_profile("suite")


def pytest_addoption(parser):
    """Let the harnesses run longer than the suite does."""
    parser.addoption("--kills", type=int, default=3, help="how often a simulation is killed, and others in proportion")
    parser.addoption("--faults", type=int, default=500, help="how many failing system calls are tried")
    parser.addoption("--executions", type=int, default=3000, help="how many changed files are loaded")
    parser.addoption("--flips", type=int, default=5000, help="how many flipped bits are tried")
