"""The tutorial as its reader runs it."""
import csv
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

STATES = ['State: exec', 'State: init', 'State: preauth', 'State: deploying', 'State: listeners',
          'State: compute-groups', 'State: uploading', 'State: deployed']


def test_job_prints_the_published_lines(served):
    job = served.run_job()
    assert job.status == 0, job.output
    assert not job.errors
    assert job.lines[:8] == STATES
    assert re.fullmatch('  Job ID: [A-Za-z0-9]{22}', job.lines[8])
    assert job.lines[9] == '  Job accepted, awaiting results...'
    assert sorted(job.lines[10:20]) == sorted(f'    ✔ Slice {i}: Result received' for i in range(1, 11))
    assert job.lines[20:] == ['Done.']


def test_results_are_a_table_of_every_slice_and_classifier(served):
    served.run_job()
    (path,) = served.results()
    assert re.fullmatch(r'GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt', path.name)
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert list(rows[0]) == ['slice', 'classifier', 'accuracy', 'auc', 'probesets']
    assert len(rows) == 40 and {int(row['slice']) for row in rows} == set(range(1, 11))
    for row in rows:
        assert 0 <= float(row['accuracy']) <= 1 and 0 <= float(row['auc']) <= 1
        assert 5 <= len(row['probesets'].split(', ')) <= 9
