"""Fixtures: the project, the project with its server running, and the server as a module."""
import json
import secrets
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from .project import Project, ServerModule


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


@pytest.fixture(scope='session')
def one_server(tmp_path_factory):
    """A running server for all tests that can share one. Each has a job of its own there."""
    project = Project(tmp_path_factory.mktemp('server') / 'project')
    project.server = project.serve()
    yield project
    project.stop()
    assert 'Traceback' not in project.server.output


@pytest.fixture
def server(tmp_path):
    return ServerModule(tmp_path)


@pytest.fixture
def job():
    """The id of a new job."""
    return secrets.token_hex(11)
