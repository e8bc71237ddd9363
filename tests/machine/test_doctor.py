"""The doctor tells what is there, without torch and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from trimtab.machine import doctor as doctors
from trimtab.machine.doctor import as_text, doctor
from trimtab.machine.folders import cache_folder, free_bytes
from trimtab.machine.processor import flags, processor_flags, processor_name

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "versions": {"torch": "2.15.0"},
    "free_bytes": 10**12,
    "cache": {"folder": "cache", "writable": True},
    "instructions": {"vnni": True, "amx": False, "dot": False, "i8mm": False},
    "compiler": True,
}


def test_doctor_gives_plain_data_with_the_versions_that_matter() -> None:
    facts = json.loads(json.dumps(doctor()))
    assert facts["cores"] >= 1
    assert facts["free_bytes"] > 0
    assert facts["versions"]["torch"]
    assert facts["versions"]["onnxruntime"]


def test_doctor_imports_no_torch_and_opens_no_connection() -> None:
    code = """
import socket, sys
def refuse(*_): raise SystemExit("a connection was opened")
socket.socket.connect = refuse
from trimtab.machine.doctor import doctor
doctor()
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctors.EXTRAS, "openvino", ("no-such-package",))
    assert doctor()["extras"]["openvino"] == 'pip install "trimtab[openvino]"'


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    assert set(doctors.EXTRAS) == extras


def test_a_sound_machine_gets_no_advice() -> None:
    assert list(doctors.advice(SOUND)) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"versions": {"timm": None}}, "timm"),
        ({"free_bytes": 10**6}, "1 MB free"),
        ({"cache": {"folder": "there", "writable": False}}, "TRIMTAB_CACHE"),
        ({"compiler": False}, "C++ compiler"),
        ({"instructions": dict.fromkeys(("vnni", "amx", "dot", "i8mm"), False)}, "int8"),
    ],
)
def test_each_fault_gets_one_advice(change: dict[str, object], word: str) -> None:
    found = list(doctors.advice({**SOUND, **change}))
    assert len(found) == 1
    assert word in found[0]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRIMTAB_CACHE", raising=False)
    assert cache_folder() == tmp_path / "trimtab"
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_the_size_of_the_cache_is_the_sum_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.npy").write_bytes(b"x" * 100)
    (tmp_path / "deep" / "two.npy").write_bytes(b"x" * 23)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    facts = doctors.cache_facts(tmp_path)
    assert facts["size_bytes"] == 123
    assert facts["writable"]


def test_a_cache_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    facts = doctors.cache_facts(tmp_path / "not" / "yet")
    assert facts["size_bytes"] == 0
    assert facts["free_bytes"] > 0


def test_the_text_says_what_the_data_say() -> None:
    facts = {**doctor(), "advice": ["free some space"]}
    text = as_text(facts)
    assert facts["processor"] in text
    assert f"torch {facts['versions']['torch']}" in text
    assert facts["cache"]["folder"] in text
    assert text.endswith("advice:   free some space")


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_processor_facts_are_read_as_the_system_writes_them(tmp_path: Path) -> None:
    intel = tmp_path / "intel"
    intel.write_text(
        "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512f amx_int8\n"
    )
    arm = tmp_path / "arm"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert processor_name(intel) == "Fast One"
    assert processor_flags(intel)["amx"]
    assert not processor_flags(intel)["vnni"]
    assert processor_flags(arm)["dot"]
    assert "amx_int8" in flags(intel)
    assert not any(processor_flags(tmp_path / "missing").values())


def test_a_processor_whose_name_has_no_number_is_told_by_family_and_model(tmp_path: Path) -> None:
    lines = tmp_path / "cpuinfo"
    told = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: {}\n"
    lines.write_text(told.format("AMD EPYC"))
    assert processor_name(lines) == "AMD EPYC (family 26, model 2)"
    lines.write_text(told.format("AMD EPYC 9654"))
    assert processor_name(lines) == "AMD EPYC 9654"
