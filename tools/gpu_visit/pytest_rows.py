"""A plugin of pytest, `-p gpu_visit.pytest_rows`: prints a row for every test as it ends, also for one whose process
died. Under xdist the process that collects the reports prints them."""

import json


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Rows(config))


class Rows:
    def __init__(self, config):
        self.config = config

    def pytest_runtest_logreport(self, report):
        if report.when in ("setup", "teardown") and report.passed:
            return
        row = {"name": report.nodeid, "seconds": round(report.duration, 1)}
        if report.failed:
            row["failed"] = reason(report)
        elif report.skipped:
            row["skipped"] = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        terminal.write(f"\n{json.dumps(row)}\n")  # a line of its own, whatever stands in the last one


def reason(report):
    """The first line of what the test raised; of a process that died, what xdist says of it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).strip().splitlines()[0][:300]
