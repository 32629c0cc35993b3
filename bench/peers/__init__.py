"One file for each peer: its app, which its worker imports, and `Peer`, which says how to measure it"
