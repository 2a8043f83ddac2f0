"""Serve a GGUF file with llama.cpp's own server until interrupted. Needs xllamacpp, in a separate environment.

    python recipes/serve_llama_cpp.py tiny.gguf 8090 16        # file, port (0: a free one), number of slots
    python recipes/serve_llama_cpp.py tiny.gguf 8090 16 F32    # … and the type of keys and values, by default F16

Prints the server's address once it accepts requests.
"""

from __future__ import annotations

import sys
import threading

import xllamacpp


def serve(path: str, port: int, slots: int, context: int, cache: str = "F16") -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = context * slots
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache}")
    params.warmup = False
    return xllamacpp.Server(params)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        raise SystemExit(__doc__)
    server = serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 1024, *sys.argv[4:])
    print(server.listening_address, flush=True)
    threading.Event().wait()
