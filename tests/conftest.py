"""Fixtures: the project, the project with its server running, and its server as a module of this process."""
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from .project import Project, ServerModule


def pytest_report_header():
    """Report the version that is in use: npm chooses it when dcp is installed."""
    package = Path(find_spec('dcp').origin).parent / 'js/node_modules/dcp-client/package.json'
    return f'dcp-client {json.loads(package.read_text())["version"]}'


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / 'project')
    yield project
    project.stop()


@pytest.fixture
def served(project):
    project.server = project.serve()
    return project


@pytest.fixture
def server(tmp_path):
    server = ServerModule(tmp_path / 'project')
    server.restart()
    return server
