"The examples do what their first lines say"
import re, signal, socket, subprocess, sys

import httpx
from util import root, until

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def get(url):
    try: return httpx.get(url).text
    except httpx.TransportError: return ''

def test_app(tmp_path):
    "P1: a report that was asked for before `kill -9` is there after a restart; the other tenant has none"
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    start = lambda: subprocess.Popen([sys.executable, str(root/'examples'/'app.py'), str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    p = start()
    try:
        until(lambda: 'Make a report' in get(f'{url}/acme'), 20)
        assert httpx.post(f'{url}/acme/reports').status_code==303
        until(lambda: ' running ' in get(f'{url}/acme'), 10)
        p.send_signal(signal.SIGKILL); p.wait()
        p = start()
        until(lambda: 'report for acme' in get(f'{url}/acme'), 20)
        assert len(re.findall('<li>', get(f'{url}/acme')))==1 and '<li>' not in get(f'{url}/globex')
        assert not re.findall(r'src="|rel="stylesheet"', get(f'{url}/acme'))        # nothing is loaded from anywhere
    finally: p.terminate(); p.wait()
