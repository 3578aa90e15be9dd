"""Prompt files and the choice of each round's prompts."""

import pytest

from generator_loop.records import Prompt
from generator_loop.sampling.prompts import draw_prompts, read_prompts

PROMPTS = tuple(Prompt(index, f"prompt {index}") for index in range(10))


def test_csv_column_is_read_in_order_with_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('\ufefftext,id\n"a cat, asleep",1\n"a dog\nrunning",2\n', encoding="utf-8")
    assert read_prompts(path, column="text") == (Prompt(0, "a cat, asleep"), Prompt(1, "a dog\nrunning"))


def test_jsonl_and_txt_are_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n')
    (tmp_path / "a.txt").write_text("a cat\n\n  a dog  \n")
    expected = (Prompt(0, "a cat"), Prompt(1, "a dog"))
    assert read_prompts(tmp_path / "a.jsonl") == expected
    assert read_prompts(tmp_path / "a.txt") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\nx\n", r"no column 'prompt'; set prompts.column to one of \['text'\]"),
        ("a.csv", "prompt,n\nx,1\n,2\n", "line 3: the prompt is empty"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.csv", "", "no column 'prompt'"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', "line 2: expected an object with text under 'prompt'"),
        ("a.jsonl", '{"prompt"\n', "line 1: not JSON"),
        ("a.txt", "\n", "holds no prompts"),
        ("a.md", "x", "must end in .csv, .jsonl, .txt"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"none.csv does not exist"):
        read_prompts(tmp_path / "none.csv")


def draw(round_index, **settings):
    return draw_prompts(PROMPTS, **{"num_prompts": 4, "seed": 0, "round_index": round_index, **settings})


def test_a_round_is_the_same_each_time_and_differs_from_others():
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(3) != draw(3, seed=1)


def test_no_prompt_comes_twice_in_a_round_or_in_a_pass():
    for start in range(0, 40, 2):
        both = draw(start) + draw(start + 1)
        assert len(set(both)) == 8


def test_every_prompt_comes_up_in_time():
    assert {prompt for round_index in range(20) for prompt in draw(round_index)} == set(PROMPTS)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_are_disjoint_and_together_draw_what_one_process_draws(num_ranks):
    for round_index in range(6):
        shares = [draw(round_index, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
        together = [prompt for share in shares for prompt in share]
        assert len(together) == 4 and set(together) == set(draw(round_index))


def test_more_prompts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="in 1..10, the number of prompts, got 11"):
        draw(0, num_prompts=11)


def test_an_uneven_split_over_processes_is_refused():
    with pytest.raises(ValueError, match=r"\(4\) must be a multiple of the number of processes 3"):
        draw(0, num_ranks=3)
