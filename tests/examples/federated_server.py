"""The server of a site in federated.py: server.py, with settings that a real site has in its own server.py.

    python3 tests/examples/federated_server.py north
"""
import sys
sys.path.insert(0, '.')
import server    # server.py

site = sys.argv[1]
server.data_file = server.here / 'input' / f'{site}.txt'
server.results_folder = server.here / 'results' / site
header, *samples = open('input/GSE57383_ps_psa.txt')
own = samples[:40] if site == 'north' else samples[40:]    # in place of patients of its own
server.data_file.write_text(''.join([header, *own]))
server.app.run('0.0.0.0', {'north': 5002, 'south': 5003}[site])
