"""A cache folder of the test's own, and files with the keys of timm and torchvision put into it by hand."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from eff_plugins.cache import cache_folder
from eff_plugins.hub import weights
from eff_plugins.testing.oracles import build_oracle, randomise
from tests.conftest import oracle


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path / 'cache'))
    folder = cache_folder('weights')
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def served(tmp_path):
    """A folder and the loopback address that serves it."""
    folder = tmp_path / 'served'
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f'127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def put_by_hand(cache, monkeypatch):
    """``put_by_hand(uri)``: a random network of timm or torchvision, its weights in the cache where ``uri`` looks for them.

    The published first digits of the hash are replaced by the file's own, as they would be right for the real file.
    """
    from safetensors.torch import save_file

    from eff_plugins.hub.fetch import sha256_of

    def put(uri):
        source = uri.partition(':')[0]
        oracle(source)
        _, row = weights.find_weights(uri)
        model = build_oracle(f'{source}:{row.name.partition("/" if source == "tv" else ".")[0]}')
        randomise(model)
        path = cache / row.file
        if path.suffix == '.safetensors':
            save_file(model.state_dict(), path)
        else:
            torch.save(model.state_dict(), path)
        if row.sha256:
            digest = sha256_of(path)
            monkeypatch.setattr(weights.Weights, 'sha256', property(lambda self: digest[:8]))
        return model, path, row

    return put
