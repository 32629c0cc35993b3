"fh_saas measured against the limits of the machine and against its peers: `python -m bench`"
