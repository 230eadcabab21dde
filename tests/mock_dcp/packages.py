"""DCP's package manager, as far as the mocked DCP has it: what dcp imports around a Python work function."""
import json
import re
from importlib.util import find_spec
from pathlib import Path

# dcp imports NumPy around every Python work function, whether that uses it or not. NumPy for Pyodide is on no
# package registry. So this stands in for it: no value is an array, and whoever wants more of it is told.
NO_NUMPY = "the mocked DCP has no NumPy for Python work functions: DCP's package manager has"
NUMPY = f'''
__file__ = ''
class ndarray: pass
def __getattr__(name): raise ImportError({NO_NUMPY!r})
'''
INSTALL = '''module.declare([], (require, exports) => {
  exports.readyPromise = pyodideInit().then((pyodide) => {
    const folder = pyodide.runPython('import site; site.getsitepackages()[0]');
    pyodide.FS.mkdirTree(`${folder}/NAME`);
    for (const [file, text] of Object.entries(FILES)) pyodide.FS.writeFile(`${folder}/${file}`, text);
    pyodide.loadedPackages['NAME'] = 'default channel';
  });
})'''


class NotMocked(Exception):
    """What the mocked DCP has not. It ends with a line that says so."""


def module_groups(modules):
    """Return the modules that a sandbox asks for, as DCP's package manager does: {package: {file: text}}."""
    groups = {}
    for module in modules:
        package, _, file = module.partition('/')
        name = re.sub(r'^pyodide-[\d.]+-', '', package)
        if name == 'numpy':
            files = {'numpy.py': NUMPY}
        elif name == 'cloudpickle':    # which is pure Python, and dcp has it here
            folder = Path(find_spec(name).origin).parent
            files = {f'{name}/{path.name}': path.read_text(encoding='utf-8') for path in folder.glob('*.py')}
        else:
            raise NotMocked(f"the mocked DCP has no package {name}: DCP's package manager may have it")
        groups[package] = {file: INSTALL.replace('NAME', name).replace('FILES', json.dumps(files))}
    return groups
