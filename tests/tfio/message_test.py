import importlib
import sys

import pytest


def test_without_tensorflow_io_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "keras_audiolm.data.tfio", raising=False)
    with pytest.raises(ValueError, match="tensorflow-io==0.37.1.*AudioCrops"):
        importlib.import_module("keras_audiolm.data.tfio")
