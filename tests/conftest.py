"""Fixtures: the project, and the project with its server running, each test's own."""
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from .project import Project


def pytest_report_header():
    """Report the versions in use: npm chooses that of dcp-client when dcp is installed."""
    client = json.loads((Path(find_spec('dcp').origin).parent / 'js/node_modules/dcp-client/package.json').read_text())
    return f'dcp {version("dcp")}, pythonmonkey {version("pythonmonkey")}, dcp-client {client["version"]}'


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / 'project')
    yield project
    project.stop()


@pytest.fixture
def served(project):
    project.server = project.serve()
    return project
