import os

# With this variable, `.ci/run` measures the coverage of the processes that run tests. They have begun to measure when
# they started. The servers under test are not measured, because this would make them slower.
if "PYTEST_XDIST_WORKER" in os.environ and "COVERAGE_PROCESS_START" in os.environ:
    del os.environ["COVERAGE_PROCESS_START"]
    os.environ.pop("COVERAGE_PROCESS_CONFIG", "")
