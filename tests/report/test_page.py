"""The page: whole, offline, harmless, and every number from the folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import (
    DIGITS,
    build_fit,
    build_train,
    errors,
    files,
    miss,
    noise,
    rewrite,
    start,
)
from tests.report.reading import Node, read
from trimtab.errors import UsageError
from trimtab.report.page import report

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PARTS = ("verdict.json", "table.json", "screen.json", "errors.json", "confusion.json", "data.json",
         "findings.json", "recipe.yaml", "environment.json", "ledger.jsonl")  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\u202egnp\x1b[31m"
HARMLESS = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}⟨U+202E⟩gnp⟨U+001B⟩[31m"


def page_of(*runs: Any, **settings: Any) -> Node:
    return read(report(*runs, **settings).read_text("utf-8"))


def values_in(node: Node) -> list[float]:
    return [float(data.attributes["value"]) for data in node.all("data")]


def section(page: Node, id_: str) -> Node:
    return next(node for node in page.walk() if node.attributes.get("id") == id_)


# Whole and offline


def test_page_asks_for_nothing_outside_itself(fit_run: Path) -> None:
    html = report(fit_run).read_text("utf-8")
    page = read(html)
    for node in page.walk():
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = node.attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,")), (node.tag, name, value)
    assert not re.search(r"url\(|@import|https?:|//[a-z]", html)


def test_policy_forbids_everything_but_inline_style_and_pictures(fit_run: Path) -> None:
    head = page_of(fit_run).all("head")[0]
    metas = [node.attributes for node in head.all("meta")]
    policy = {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert policy in metas
    assert metas.index(policy) < 2  # before anything it must rule over


def test_page_holds_no_script_and_no_handler(fit_run: Path) -> None:
    page = page_of(fit_run)
    assert {"script", "iframe", "object", "embed", "form", "base", "link"}.isdisjoint(
        node.tag for node in page.walk()
    )
    assert not [name for node in page.walk() for name in node.attributes if name.startswith("on")]


def test_ids_are_unique_and_every_link_has_its_place(fit_run: Path) -> None:
    page = page_of(fit_run)
    ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
    links = [node.attributes["href"] for node in page.all("a")]
    assert len(ids) == len(set(ids))
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_pictures_and_tables_can_be_read_out(fit_run: Path) -> None:
    page = page_of(fit_run)
    drawings = [node for node in page.all("svg") if "aria-hidden" not in node.attributes]
    assert all(
        node.attributes["role"] == "img" and node.attributes["aria-label"] for node in drawings
    )
    assert all(node.attributes["alt"] for node in page.all("img"))
    assert all("scope" in node.attributes for node in page.all("th"))
    assert page.all("html")[0].attributes["lang"] == "en"
    assert len(page.all("h1")) == 1


# What it says


def test_verdict_says_that_the_target_is_met_and_what_it_was_judged_on(fit_run: Path) -> None:
    hero = section(page_of(fit_run), "verdict")
    verdict = files()["verdict.json"]
    assert "Target met" in hero.text
    assert "cnn_medium-keep70-int8" in hero.text
    assert [node.text for node in hero.all("strong")][1] == "test"
    for number in [c[key] for c in verdict["clauses"] for key in ("wanted", "got")]:
        assert number in values_in(hero)
    assert {141.27, 180.0} <= set(values_in(hero))
    assert len(hero.all("div", "gauge")) == 3
    assert not hero.all("div", "over")


def test_missed_target_names_the_binding_clause(fit_run: Path) -> None:
    rewrite(fit_run / "verdict.json", miss)
    hero = section(page_of(fit_run), "verdict")
    assert "Target missed" in hero.text
    assert "ships as the nearest" in hero.text
    (over,) = hero.all("div", "over")
    assert "missed, binds" in over.text
    assert "accuracy" in over.text


def test_every_number_of_the_table_stands_on_the_page_as_it_was_measured(fit_run: Path) -> None:
    body = section(page_of(fit_run), "candidates").all("table")[0].all("tbody")[0]
    for row, shown in zip(files()["table.json"], body.all("tr"), strict=True):
        found = values_in(shown)
        wanted = [row[key] for key in ("p50_ms", "p95_ms", "size_bytes", "params", "macs")]
        wanted += [row["flip_fraction"], (row["accuracy"] or {}).get("value"),
                   (row["speedup"] or {}).get("value")]  # fmt: skip
        assert {float(v) for v in wanted if v is not None} <= set(found), row["name"]
        assert row["name"] in shown.text
        assert row["why"] in shown.text


def test_row_that_ships_is_marked_and_no_other(fit_run: Path) -> None:
    table = section(page_of(fit_run), "candidates").all("table")[0]
    (row,) = table.all("tr", "ships")
    assert "cnn_medium-keep70-int8" in row.text
    assert [node.text for node in row.all("span", "tag")] == ["ships"]
    dropped = [row["name"] for row in files()["table.json"] if not row["kept"]]
    assert len(table.all("tr", "dropped")) == len(dropped)


def test_screen_shows_what_was_timed_and_why_it_was_dropped(fit_run: Path) -> None:
    screen = section(page_of(fit_run), "screen")
    for row in files()["screen.json"]:
        assert row["name"] in screen.text
        assert row["why"] in screen.text
        assert float(row["params"]) in values_in(screen)


def test_recall_counts_come_from_the_confusion_matrix(fit_run: Path) -> None:
    matrix = json.loads((fit_run / "confusion.json").read_text("utf-8"))["matrix"]
    errors_section = section(page_of(fit_run), "errors")
    recall = next(t for t in errors_section.all("table") if "most taken for" in t.text)
    found = {row.all("th")[0].text: values_in(row)[:2] for row in recall.all("tbody")[0].all("tr")}
    assert found == {str(i): [matrix[i][i], sum(matrix[i])] for i in range(10)}


def test_ledger_environment_recipe_and_commands_are_there(fit_run: Path) -> None:
    page = page_of(fit_run)
    assert {-0.0148, 0.0004, 0.9815, 30.1} <= set(values_in(section(page, "ledger")))
    assert "mirrored_accuracy 0.412" in section(page, "ledger").text
    assert "Example CPU @ 2.50GHz" in section(page, "environment").text
    assert "learning_rate: auto" in section(page, "environment").text
    commands = section(page, "again").text
    assert (
        "trimtab fit digits/ --target 'accuracy>=0.97, p95<=1ms, size<=100KB' --budget 3m"
        in commands
    )
    assert "python artifact/predict.py picture.png" in commands
    assert "trimtab predict . picture.png" in commands


def test_data_section_shows_counts_and_what_was_set_aside(fit_run: Path) -> None:
    data = section(page_of(fit_run), "data")
    counts = json.loads((fit_run / "data.json").read_text("utf-8"))["counts"]
    assert {float(sum(split.values())) for split in counts.values()} <= set(values_in(data))
    for words in ("3/broken.png", "truncated file", "1/copy.png", "3f2a9c0d5e81b7",
                  "4 pictures stand twice within train", "look at the reasons"):  # fmt: skip
        assert words in data.text


# Harmless


def hostile(value: Any) -> Any:
    """Replace every text of a JSON value, keys of counts too, by something that attacks."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_is_shown_as_text_in_every_place(tmp_path: Path) -> None:
    run = build_fit(tmp_path / "run", classes=[f"{HOSTILE}{i}" for i in range(12)])
    kept = {"kind": "fit", "status": "finished", "severity": "warning", "op": ">="}
    for path in sorted(run.rglob("*.json")):
        rewrite(path, lambda content: restored(hostile(content), kept))
    rewrite(
        run / "data.json", lambda d: d | {"counts": {HOSTILE: {HOSTILE: 3}}, "sizes": {HOSTILE: 1}}
    )
    (run / "recipe.yaml").write_text(HOSTILE, "utf-8")
    for path in sorted(run.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        path.write_text("".join(json.dumps({**hostile(r), HOSTILE: HOSTILE}) + "\n" for r in rows))
    html = report(run).read_text("utf-8")
    page = read(html)
    assert not page.all("script")
    assert not [name for node in page.walk() for name in node.attributes if name.startswith("on")]
    assert not [node for node in page.all("img") if node.attributes["src"] == "x"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    for place in ("verdict", "candidates", "screen", "errors", "data", "ledger", "environment"):
        assert HARMLESS in section(page, place).text, place
    assert HARMLESS in page.all("h1")[0].text


def restored(content: Any, kept: dict[str, str]) -> Any:
    """Put words back that decide which way the page goes."""
    if isinstance(content, list):
        return [restored(item, kept) for item in content]
    if isinstance(content, dict):
        return {key: kept.get(key, restored(item, kept)) for key, item in content.items()}
    return content


@pytest.mark.parametrize(
    "name", ["狗 🐕", "👨‍👩‍👧‍👦", "مرحبا", "a b\u00a0c", "50_km/h", "é" * 90, "\ud800"]
)
def test_unusual_class_names_stay_readable(tmp_path: Path, name: str) -> None:
    run = build_fit(tmp_path / "run", classes=[*DIGITS[:4], "other"])
    for file in ("errors.json", "confusion.json", "table.json"):
        text = (run / file).read_text("utf-8").replace('"other"', json.dumps(name))
        (run / file).write_text(text, "utf-8")
    text = section(page_of(run), "errors").text
    assert (
        name if name.isprintable() or "\u200d" in name or "\u00a0" in name else "U+D800"
    ) in text


@pytest.mark.parametrize(
    "image", ["x", "PHN2Zz4=", "aGVsbG8", "A" * 300_000, '"><script>', None, 7]
)
def test_what_is_no_png_is_not_shown_as_a_picture(fit_run: Path, image: Any) -> None:
    rewrite(fit_run / "errors.json", lambda rows: [rows[0] | {"image": image}])
    (figure,) = section(page_of(fit_run), "errors").all("div", "frame")
    assert not figure.all("img")
    assert "no picture" in figure.text


# Large


def test_page_of_a_thousand_classes_and_fifty_errors_stays_below_two_megabytes(
    tmp_path: Path,
) -> None:
    names = [f"n{i:08d} a rather long class name, with its synonym & more {i}" for i in range(1000)]
    run = build_fit(tmp_path / "run", classes=names, mistakes=1)
    rows = [row | {"image": noise(i)} for i, row in enumerate(errors(names, 50))]
    (run / "errors.json").write_text(json.dumps(rows), "utf-8")
    path = report(run)
    page = read(path.read_text("utf-8"))
    assert path.stat().st_size < 2_000_000
    assert len(page.all("ul", "gallery")[0].all("img")) > 20
    (raster,) = page.all("img", "raster")
    assert raster.attributes["width"] == "500"
    assert all(name in page.text for name in names[::100])


def test_forty_three_classes_show_their_most_confused_pairs(tmp_path: Path) -> None:
    run = build_fit(tmp_path / "run", classes=[f"sign {i}" for i in range(43)])
    found = section(page_of(run), "errors")
    assert found.all("img", "raster")
    pairs = next(table for table in found.all("table") if "decided as" in table.text)
    assert len(pairs.all("tbody")[0].all("tr")) == 12


# Missing and damaged


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_said_and_the_rest_is_drawn(fit_run: Path, part: str) -> None:
    (fit_run / part).unlink()
    page = page_of(fit_run)
    if part != "ledger.jsonl":  # the candidates' ledgers are still there
        assert f"There is no {part} in this folder" in page.text
    assert len(page.all("section")) == 9


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("content", [b'{"', b"[1, 2]", b"\xff\xfe", b"{}", b"[" * 5000, b"null"])
def test_damaged_part_is_said_and_the_rest_is_drawn(
    fit_run: Path, part: str, content: bytes
) -> None:
    (fit_run / part).write_bytes(content + b"\n")
    page = page_of(fit_run)
    assert len(page.all("section")) == 9
    if content == b"\xff\xfe":
        assert f"{part} could not be read" in page.text


def test_run_that_has_only_begun_gets_a_report(tmp_path: Path) -> None:
    page = page_of(start(tmp_path / "run"))
    assert "No verdict yet" in page.text
    assert "There is no table.json in this folder: the run has not come that far." in page.text
    assert "Example CPU" in page.text


def test_interrupted_run_says_so(tmp_path: Path) -> None:
    page = page_of(start(tmp_path / "run", status="interrupted"))
    assert "the run was interrupted before it was written" in page.text


def test_numbers_that_are_not_finite_count_as_not_measured(fit_run: Path) -> None:
    text = (fit_run / "table.json").read_text("utf-8").replace("0.0662", "NaN")
    (fit_run / "table.json").write_text(text.replace("61204", "Infinity"), "utf-8")
    html = report(fit_run).read_text("utf-8")
    assert "NaN" not in html
    row = section(read(html), "candidates").all("tr", "ships")[0]
    assert {0.0662, 61204.0}.isdisjoint(values_in(row))


def test_accuracy_without_interval_is_drawn(fit_run: Path) -> None:
    bare = {"value": 0.5, "split": "valid"}
    rewrite(fit_run / "table.json", lambda rows: [row | {"accuracy": bare} for row in rows])
    assert 0.5 in values_in(section(page_of(fit_run), "candidates"))


# Other runs


def test_training_run_is_shown_from_its_ledger(tmp_path: Path) -> None:
    page = page_of(build_train(tmp_path / "base"))
    measured = section(page, "candidates")
    assert "Measured" in measured.text
    assert {0.9444, 0.05, 0.0612, 6100.0, 402_000.0} <= set(values_in(measured))
    assert "No verdict" not in page.text


def test_child_of_a_run_shows_its_steps_and_inherits_what_did_not_change(tmp_path: Path) -> None:
    base = build_train(tmp_path / "base")
    child = start(tmp_path / "tiny", kind="quantize", parent="../base", status="finished")
    table = section(page_of(base, child, out=tmp_path / "both.html"), "candidates")
    row = table.all("tbody")[0].all("tr")[1]
    assert "train → quantize" in row.text
    assert "parent #1" in row.text
    assert {6100.0, 402_000.0} <= set(values_in(row))


def test_family_that_goes_in_circles_is_no_trap(tmp_path: Path) -> None:
    run = build_train(tmp_path / "base", parent="../base")
    assert "base" in page_of(run).text


def test_artifact_alone_is_shown_by_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shipped"
    folder.mkdir()
    card = {"accuracy": {"value": 0.97, "low": 0.95, "high": 0.98, "n": 270, "split": "test"},
            "latency": {"p50_ms": 0.4, "p95_ms": 0.6}}  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card), "utf-8")
    (folder / "model.onnx").write_bytes(b"x" * 1234)
    assert {0.97, 0.4, 0.6, 1234.0} <= set(values_in(section(page_of(folder), "candidates")))
    assert (tmp_path / "report.html").exists()
    assert not (folder / "report.html").exists()


def test_two_fits_side_by_side_keep_their_candidates_apart(tmp_path: Path) -> None:
    one, two = build_fit(tmp_path / "one"), build_fit(tmp_path / "two")
    page = page_of(one, two, out=tmp_path / "both.html")
    names = [th.text for th in section(page, "candidates").all("th", "model")]
    assert sum("one/cnn_medium-keep70-int8" in name for name in names) == 1
    assert sum("two/cnn_medium-keep70-int8" in name for name in names) == 1
    parents = [span.text for span in page.all("span", "small") if "parent #" in span.text]
    assert "parent #3" in parents
    assert "parent #11" in parents


# Where it goes


def test_report_goes_into_the_run_or_here_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = build_train(tmp_path / "a"), build_train(tmp_path / "b")
    assert report(run) == run / "report.html"
    assert report(str(run), other) == Path("report.html")
    assert report(run, out=tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    assert report(run, out=tmp_path / "folder") == tmp_path / "folder" / "report.html"
    assert all(path.stat().st_size > 10_000 for path in tmp_path.rglob("*.html"))


@pytest.mark.parametrize("runs", [(), ("nowhere",), (42,)])
def test_what_is_no_run_is_refused(runs: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError):
        report(*runs)


def test_torch_is_not_imported(fit_run: Path) -> None:
    code = (
        "import sys\nfrom trimtab.report.page import report\n"
        f"report({str(fit_run)!r})\n"
        "print(*{'torch', 'numpy', 'onnxruntime', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
