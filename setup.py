"""Builds the extensions. PUSHD_BUILD=release (default), trace (Cython line tracing) or asan."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAVOURS = {
    "release": {"compile": ["-O3", "-fno-plt"], "link": [], "directives": {}, "macros": []},
    "trace": {
        "compile": ["-O1"],
        "link": [],
        "directives": {"linetrace": True},
        "macros": [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")],
    },
    "asan": {
        "compile": ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"],
        "link": ["-fsanitize=address"],
        "directives": {},
        "macros": [],
    },
}

name = os.environ.get("PUSHD_BUILD", "release")
if name not in FLAVOURS:
    raise SystemExit(f"PUSHD_BUILD={name!r}: expected one of {', '.join(FLAVOURS)}")
flavour = FLAVOURS[name]

extensions = [
    Extension(
        module,
        [f"{module.replace('.', '/')}.pyx"],
        extra_compile_args=flavour["compile"],
        extra_link_args=flavour["link"],
        define_macros=flavour["macros"],
    )
    for module in (
        "pushd._fastpath",
        "pushd.protocol._json",
        "pushd.ws._reader",
        "pushd.ledger._notices",
        "pushd.ledger._patches",
        "pushd.ledger._places",
        "pushd.ledger._ledger",
        "pushd.ledger._names",
        "pushd.ledger._loading",
        "pushd.ledger._replay",
        "pushd.ledger._log",
        "pushd.ledger._cold",
        "pushd.ledger._changes",
        "pushd.ledger._entries",
        "pushd.ledger._inbox",
        "pushd.ledger._lists",
        "pushd.ledger._push_counts",
        "pushd.ledger._pushes",
        "pushd.ledger._passes",
        "pushd.ledger._views",
    )
]

setup(
    ext_modules=cythonize(
        extensions,
        compiler_directives={"language_level": 3, "binding": True, **flavour["directives"]},
        build_dir="build/cython",
    )
)
