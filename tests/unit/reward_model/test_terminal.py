"""Text on terminals and in logs: no file name or message can forge a line or move the cursor."""

import io
import logging
import sys
import unicodedata
import warnings

import pytest

from reward_model.cli import main as cli
from reward_model.evaluation.tables import format_rows
from reward_model.terminal import VisibleFormatter, VisibleParser, visible, warnings_of

EVIL = "a\x1b[2J\x1b]0;t\x07\nfine.mp4  0.9\r\u202eb\u2028c\x9bd"


def is_plain(text):
    return not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text.replace("\n", ""))


def test_a_visible_text_is_one_line_that_shows_what_it_hides():
    assert visible("a\x1b[2J\nb\u202ec \u00e9") == "a\\x1b[2J\\nb\\u202ec \u00e9"
    assert is_plain(visible(EVIL)) and "\n" not in visible(EVIL)


def test_a_table_shows_names_and_values_visibly_and_keeps_its_lines():
    lines = format_rows([{"name": EVIL, EVIL: 1.0}, {"name": "b", EVIL: float("nan")}]).split("\n")
    assert len(lines) == 3 and all(map(is_plain, lines))


@pytest.mark.parametrize("broken", [False, True])
def test_a_log_line_is_visible_and_a_traceback_keeps_its_lines(broken):
    stream, log = io.StringIO(), logging.getLogger("test_terminal")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VisibleFormatter("%(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        if broken:
            try:
                raise ValueError(EVIL)
            except ValueError:
                log.exception("left out: %s", EVIL)
        else:
            log.warning("left out: %s", EVIL)
    finally:
        log.removeHandler(handler)
    lines = stream.getvalue().rstrip("\n").split("\n")
    assert all(map(is_plain, lines)) and lines[0].startswith(("WARNING left out: a\\x1b", "ERROR left out: a\\x1b"))
    assert (len(lines) > 3) == broken


def test_a_warning_is_one_line_with_the_programs_name(capsys):
    before = warnings.formatwarning
    with warnings.catch_warnings(), warnings_of("video-judge"):
        warnings.simplefilter("always")
        sys.stderr.write(warnings.formatwarning(EVIL, UserWarning, "file.py", 3))
    said = capsys.readouterr().err
    assert said.startswith("video-judge: warning: a\\x1b") and said.count("\n") == 1 and is_plain(said)
    assert warnings.formatwarning is before


def test_a_refused_command_line_is_quoted_visibly(capsys):
    for parse in (
        lambda: VisibleParser(prog="x").parse_args([EVIL]),
        lambda: cli(["score", "a.mp4", "--a\x1b[2J\x07"]),
    ):
        with pytest.raises(SystemExit):
            parse()
        said = capsys.readouterr().err
        assert is_plain(said) and "\\x1b" in said


def refusals():
    """Return the command lines of all programs over a file with such a name."""
    from generator_loop.__main__ import main as joint
    from scripts.train_judge import main as train

    commands = {
        "joint_train.py": lambda: joint([f"{EVIL}.yaml"]),
        "joint_train.py resume": lambda: joint(["configs/toy.yaml", f"resume={EVIL}"]),
        "train_judge.py": lambda: train([f"{EVIL}.yaml"]),
    }
    for command in ("score", "compare", "rank", "explain", "eval", "calibrate", "sanity", "bench", "export", "serve"):
        given = {
            "compare": [EVIL, EVIL],
            "eval": ["--manifest", EVIL],
            "calibrate": [EVIL, "--dry-run"],
            "export": [EVIL, "--judge", EVIL],
            "serve": ["--token-file", EVIL],
        }.get(command, [EVIL])
        judge = [] if command == "export" else ["--judge", f"no/{EVIL}"]
        commands[command] = lambda line=[command, *given, *judge]: cli(line)
    return commands


@pytest.mark.parametrize("name", refusals())
def test_no_program_prints_the_control_characters_of_a_file_name(name, capsys):
    try:
        status = refusals()[name]()
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status in (1, 2)
    assert is_plain(captured.err) and is_plain(captured.out) and captured.err
