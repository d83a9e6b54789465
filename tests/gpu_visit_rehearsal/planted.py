"""Tests for the step "tests" of a rehearsal: one hangs, one kills its process, one fails. Not collected otherwise."""

import ctypes
import os

import pytest


def test_before():
    pass


def test_hang():
    while True:
        ctypes.CDLL(None).pause()


def test_fault():
    os._exit(70)


def test_failure():
    assert 1 + 1 == 3


@pytest.mark.parametrize("number", range(4))
def test_after(number):
    pass


def test_skipped():
    pytest.skip("cannot run here")
