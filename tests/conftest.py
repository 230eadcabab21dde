"""Fixtures: the project, and the project with its server running, each test's own."""
import pytest

from .project import Project


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path / 'project')
    yield project
    project.stop()


@pytest.fixture
def served(project):
    project.server = project.serve()
    return project
