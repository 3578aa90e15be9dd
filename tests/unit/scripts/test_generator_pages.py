"""The pages of the generator's experiments are those of their JSON, and say what the figures show."""

import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "experiments"))
    import run_arms
    import run_objectives

    return run_arms, run_objectives


def content(name):
    return json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_results_page_is_that_of_its_json(scripts, tmp_path, monkeypatch):
    run_arms, _ = scripts
    (tmp_path / "toy_results.json").write_bytes((ROOT / "docs" / "toy_results.json").read_bytes())
    monkeypatch.setattr("sys.argv", ["run_arms.py", "--from-json", "--docs", str(tmp_path)])
    assert run_arms.main() == 0
    assert (tmp_path / "toy_results.md").read_bytes() == (ROOT / "docs" / "toy_results.md").read_bytes()


def test_the_objectives_page_is_that_of_its_json(scripts, tmp_path):
    _, run_objectives = scripts
    (tmp_path / "toy_objectives.json").write_bytes((ROOT / "docs" / "toy_objectives.json").read_bytes())
    assert run_objectives.main(["--from-json", "--docs", str(tmp_path)]) == 0
    assert (tmp_path / "toy_objectives.md").read_bytes() == (ROOT / "docs" / "toy_objectives.md").read_bytes()


def test_results_are_set_against_their_seeds(scripts):
    run_arms, _ = scripts
    summary = content("toy_results")["arms"]["nft"]
    values = run_arms.by_seed(summary, "overall")
    mean = sum(values) / 3
    half = 4.302653 * math.sqrt(sum((one - mean) ** 2 for one in values) / 2 / 3)  # t(2) at 97.5 %
    assert f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]" in run_arms.page_of({"nft": summary})
    assert mean == pytest.approx(summary["difference"]["overall"]["mean"])


def test_an_oracle_that_stands_still_under_a_rising_judge_is_named(scripts):
    _, run_objectives = scripts
    page = (ROOT / "docs" / "toy_objectives.md").read_text(encoding="utf-8")
    findings = page.split("## Protocol")[0]
    assert (
        "DRaFT-K: in the last 123 seconds the oracle stands still (0.500 to 0.500) while the judge rises by 0.100"
        in findings
    )
    assert (
        "ReFL: in the last 121 seconds the oracle stands still (0.465 to 0.473) while the judge rises by 0.077"
        in findings
    )
    assert findings.count("stands still") == 2
    assert run_objectives.late_change(
        {"seconds": [0, 1, 2, 4], "oracle": [0, 0.1, 0.2, 0.4], "judge": [0, 0, 0, 1]}
    ) == pytest.approx((3, 0.3, 1))


def test_rates_at_the_edge_of_the_grid_are_named(scripts):
    _, run_objectives = scripts
    rates = {"nft": {"rate": 1e-3}, "dpo": {"rate": 3e-4}, "rwr_plain": {"rate": 1e-4}}
    edges = [run_objectives.edge_of(name, rates) for name in ("nft", "shuffled", "dpo", "rwr_plain", "frozen")]
    assert edges == ["highest", "highest", "", "lowest", ""]
    page = (ROOT / "docs" / "toy_objectives.md").read_text(encoding="utf-8")
    assert page.count("0.001 (highest)") == 7 and page.count("0.0001 (lowest)") == 1


def test_objectives_kept_by_seed_have_an_interval_over_seeds(scripts):
    _, run_objectives = scripts
    shown, rates = content("toy_objectives")["arms"], content("toy_objectives")["learning_rates"]
    assert "not kept for every arm" in run_objectives.page_of(shown, rates)
    kept = {name: summary | {"by_seed": [0.1, 0.101, 0.102]} for name, summary in shown.items()}
    page = run_objectives.page_of(kept, rates)
    assert "not kept" not in page and "+0.101 [+0.099, +0.103]" in page and "Shown to change the oracle" in page


def test_every_page_of_arms_links_the_protocol():
    assert (ROOT / "docs" / "protocol.md").exists()
    for name in ("toy_results", "toy_objectives", "toy_vq_insight", "toy_vqathinker"):
        assert "(protocol.md)" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
