"The short forms of tests/chaos/power.py and tests/chaos/disk.py, and what they have found"
from test_chaos import long_form

def test_power_lost_before_every_flush():
    "P1, P4, P5: see chaos/power.py; any part of what was not flushed is missing or torn"
    long_form('power', '--case', 'new_file,close,submit,transaction,job_transaction')
