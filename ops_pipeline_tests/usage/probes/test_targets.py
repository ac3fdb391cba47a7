"""The file of models to probe: what it may hold, and that mistakes are told by line and without secrets."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ops_pipeline.checking import Check
from ops_pipeline.strict_yaml import FileRefused
from ops_pipeline.usage.checks import check_probes
from ops_pipeline.usage.probes.targets import Probes, ProbesFile, Target, read_probes
from ops_pipeline_tests.usage.calls import examples

SECRET = "geheim-4711"
KEYS = {"OPENAI_KEY": SECRET, "OTHER_KEY": "anderes-0815"}
ONE = "models:\n- provider: openai\n  base_url: https://api.openai.com/v1\n  model: gpt\n"
"""A valid file of four lines; more fields of its model may follow."""
NO_URL = "no base URL; write for example https://api.openai.com/v1 (no user, password or question mark)"

FULL = """\
concurrency: 20
provider_concurrency: {openai: 4, local: 2}
probes_per_day: 100
credits_per_day: 0.25
image_probes: true
traffic_minutes: 30
traffic_failure_share: 0.2
traffic_fewest_calls: 10
models:
- provider: openai
  base_url: https://api.openai.com/v1/
  model: dall-e
  type: imageGeneration
  api_key_env: OPENAI_KEY
  timeout_seconds: 60
  expected_credits: 0.0200000001
  verify: 0
  verify_after_seconds: 0.5
  token_parameter: max_completion_tokens
  image_size: 256x256
- provider: local
  base_url: http://127.0.0.1:8000
  model: llama/3
"""


def read(folder: Path, content: str | bytes, keys: Mapping[str, str] = KEYS) -> Probes:
    """Read a file of this content."""
    path = folder / "probes.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_probes(path, lambda name: SecretStr(keys[name]) if name in keys else None)


def refusal(folder: Path, content: str | bytes, keys: Mapping[str, str] = KEYS) -> list[str]:
    """The lines of the message about a file that is refused, without its path."""
    with pytest.raises(FileRefused) as caught:
        read(folder, content, keys)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    prefix = f"{folder}/probes.yaml:"
    lines = str(caught.value).splitlines()
    assert [line for line in lines if not line.startswith(prefix)] == []
    return [line.removeprefix(prefix) for line in lines]


# What is taken


def test_every_field_of_a_full_file_is_read(tmp_path: Path) -> None:
    local = Target(provider="local", base_url="http://127.0.0.1:8000", model="llama/3")
    image = Target(
        provider="openai",
        base_url="https://api.openai.com/v1",
        model="dall-e",
        type="imageGeneration",
        api_key_env="OPENAI_KEY",
        timeout_seconds=60,
        expected_credits=Decimal("0.0200000001"),
        verify=0,
        verify_after_seconds=0.5,
        token_parameter="max_completion_tokens",
        image_size="256x256",
    )
    probes = read(tmp_path, FULL)
    assert probes.file == ProbesFile(
        concurrency=20,
        provider_concurrency={"openai": 4, "local": 2},
        probes_per_day=100,
        credits_per_day=Decimal("0.25"),
        image_probes=True,
        traffic_minutes=30,
        traffic_failure_share=0.2,
        traffic_fewest_calls=10,
        models=(image, local),
    )
    assert (probes.key_of(image), probes.key_of(local), probes.secrets()) == (SECRET, None, [SECRET])
    assert (image.key, image.probes_needed) == (("openai", "dall-e", "imageGeneration"), 1)


def test_a_file_needs_no_more_than_its_models(tmp_path: Path) -> None:
    file = read(tmp_path, ONE).file
    assert file.model_dump(exclude={"models"}) == {
        "concurrency": 8,
        "provider_concurrency": {},
        "probes_per_day": 500,
        "credits_per_day": Decimal(1),
        "image_probes": False,
        "traffic_minutes": 15,
        "traffic_failure_share": 0.5,
        "traffic_fewest_calls": 5,
    }
    (target,) = file.models
    assert target.model_dump() == {
        "provider": "openai",
        "base_url": "https://api.openai.com/v1",
        "model": "gpt",
        "type": "chatCompletion",
        "api_key_env": None,
        "timeout_seconds": 30,
        "expected_credits": Decimal(0),
        "verify": 2,
        "verify_after_seconds": 3,
        "token_parameter": "max_tokens",
        "image_size": None,
    }
    assert target.probes_needed == 3


def test_a_model_may_stand_there_for_two_providers_and_for_two_types(tmp_path: Path) -> None:
    other = "- {provider: azure, base_url: 'https://azure/v1', model: gpt}\n"
    embedding = "- {provider: openai, base_url: 'https://api.openai.com/v1', model: gpt, type: embedding}\n"
    keys = [target.key for target in read(tmp_path, ONE + other + embedding).file.models]
    assert keys == [
        ("openai", "gpt", "chatCompletion"),
        ("azure", "gpt", "chatCompletion"),
        ("openai", "gpt", "embedding"),
    ]


def test_models_may_share_fields_through_an_anchor(tmp_path: Path) -> None:
    text = "models:\n- &a {provider: openai, base_url: 'https://h', model: gpt}\n- {<<: *a, model: gpt-2}\n"
    assert [target.model for target in read(tmp_path, text).file.models] == ["gpt", "gpt-2"]


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/v1", "http://[::1]:8000/v1", "https://h/a/b-c_d~e/%20"])
def test_base_urls_of_any_host_port_and_path_are_taken_without_slashes_at_their_end(tmp_path: Path, url: str) -> None:
    for slashes in ("", "/", "//"):
        text = ONE.replace("https://api.openai.com/v1", f"'{url}{slashes}'")
        assert read(tmp_path, text).file.models[0].base_url == url


def test_names_are_taken_without_the_spaces_around_them(tmp_path: Path) -> None:
    assert read(tmp_path, ONE.replace("gpt", "'  Ärger 🙂/x '")).file.models[0].model == "Ärger 🙂/x"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + ONE.encode(), ONE.replace("\n", "\r\n").encode()])
def test_a_file_written_on_windows_is_read(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content).file == read(tmp_path, ONE).file


def test_prices_are_exact(tmp_path: Path) -> None:
    """0.1 is no binary fraction: a budget of ten probes at 0.1 would hold nine."""
    probes = read(tmp_path, f"credits_per_day: 0.3\n{ONE}  expected_credits: 0.1\n")
    assert probes.file.models[0].expected_credits * 3 == probes.file.credits_per_day


# What is refused

MODEL_FIELDS = [
    ("modle: x", "modle: unknown field"),
    ("api_key: geheim-4711", "api_key: unknown field"),
    ("type: speech", "type: Input should be 'chatCompletion', 'embedding' or 'imageGeneration'"),
    ("type: [embedding]", "type: Input should be 'chatCompletion', 'embedding' or 'imageGeneration'"),
    ("timeout_seconds: 0", "timeout_seconds: Input should be greater than 0"),
    ("timeout_seconds: 301", "timeout_seconds: Input should be less than or equal to 300"),
    ("timeout_seconds: .inf", "timeout_seconds: Input should be less than or equal to 300"),
    ("timeout_seconds: .nan", "timeout_seconds: Input should be less than or equal to 300"),
    ("timeout_seconds: soon", "timeout_seconds: Input should be a valid number, unable to parse string as a number"),
    ("expected_credits: -1", "expected_credits: Input should be greater than or equal to 0"),
    ("expected_credits: 1000.1", "expected_credits: Input should be less than or equal to 1000"),
    ("expected_credits: 1e-11", "expected_credits: Decimal input should have no more than 10 decimal places"),
    ("expected_credits: .nan", "expected_credits: Input should be a finite number"),
    (
        "expected_credits: yes",
        "expected_credits: Decimal input should be an integer, float, string or Decimal object",
    ),
    ("verify: -1", "verify: Input should be greater than or equal to 0"),
    ("verify: 11", "verify: Input should be less than or equal to 10"),
    ("verify: 1.5", "verify: Input should be a valid integer, got a number with a fractional part"),
    ("verify_after_seconds: 61", "verify_after_seconds: Input should be less than or equal to 60"),
    ("token_parameter: tokens", "token_parameter: Input should be 'max_tokens' or 'max_completion_tokens'"),
    ("image_size: big", r"image_size: String should match pattern '^\d{2,4}x\d{2,4}$'"),
    ("image_size: 256", "image_size: Input should be a valid string"),
    ("api_key_env: NOWHERE", "api_key_env: the environment variable NOWHERE is not set"),
    ("api_key_env: geheim-4711", "api_key_env: String should match pattern '^[A-Za-z_][A-Za-z0-9_]*$'"),
    ("api_key_env: ''", "api_key_env: String should match pattern '^[A-Za-z_][A-Za-z0-9_]*$'"),
]
TOP_FIELDS = [
    ("modles: []", "modles: unknown field"),
    ("concurrency: 0", "concurrency: Input should be greater than or equal to 1"),
    ("concurrency: 201", "concurrency: Input should be less than or equal to 200"),
    ("concurrency: many", "concurrency: Input should be a valid integer, unable to parse string as an integer"),
    ("concurrency:", "concurrency: Input should be a valid integer"),
    ("provider_concurrency: 3", "provider_concurrency: Input should be a valid dictionary"),
    ("provider_concurrency: {azure: 3}", "provider_concurrency.azure: no model of this provider is listed"),
    (
        "provider_concurrency: {openai: 0}",
        "provider_concurrency.openai: Input should be greater than or equal to 1",
    ),
    ("probes_per_day: -1", "probes_per_day: Input should be greater than or equal to 0"),
    ("credits_per_day: -0.1", "credits_per_day: Input should be greater than or equal to 0"),
    ("credits_per_day: .inf", "credits_per_day: Input should be a finite number"),
    ("image_probes: perhaps", "image_probes: Input should be a valid boolean, unable to interpret input"),
    ("traffic_minutes: 0", "traffic_minutes: Input should be greater than or equal to 1"),
    ("traffic_minutes: 1441", "traffic_minutes: Input should be less than or equal to 1440"),
    ("traffic_failure_share: 0", "traffic_failure_share: Input should be greater than 0"),
    ("traffic_failure_share: 1.1", "traffic_failure_share: Input should be less than or equal to 1"),
    ("traffic_fewest_calls: 0", "traffic_fewest_calls: Input should be greater than or equal to 1"),
]


@pytest.mark.parametrize(("field", "told"), MODEL_FIELDS, ids=[field for field, _ in MODEL_FIELDS])
def test_a_wrong_field_of_a_model_is_refused_with_its_line(tmp_path: Path, field: str, told: str) -> None:
    assert refusal(tmp_path, f"{ONE}  {field}\n") == [f"5: models.0.{told}"]
    second = ONE.removeprefix("models:\n").replace("gpt", "gpt-2")
    assert refusal(tmp_path, f"# models\n\n{ONE}\n{second}  {field}\n") == [f"11: models.1.{told}"]


@pytest.mark.parametrize(("field", "told"), TOP_FIELDS, ids=[field for field, _ in TOP_FIELDS])
def test_a_wrong_field_of_the_file_is_refused_with_its_line(tmp_path: Path, field: str, told: str) -> None:
    assert refusal(tmp_path, f"# limits\n\n{field}\n{ONE}") == [f"3: {told}"]
    assert refusal(tmp_path, f"{ONE}{field}\n") == [f"5: {told}"]


@pytest.mark.parametrize("field", ["provider", "base_url", "model"])
def test_a_missing_field_is_told_with_the_line_of_its_model(tmp_path: Path, field: str) -> None:
    fields = {"provider": "a", "base_url": "https://h", "model": "a"}
    others = [f"  {name}: {value}\n" for name, value in fields.items() if name != field]
    text = ONE + "-" + "".join(others)[1:]
    assert refusal(tmp_path, text) == [f"5: models.1.{field}: Field required"]


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "",
        "https://",
        "https:/h/v1",
        "ftp://h/v1",
        "https://h/v1?key=geheim-4711",
        "https://h/v1#part",
        "https://h /v1",
        "https://h/v 1",
        " https://h",
        "https://u:geheim-4711@h/v1",
        "https://geheim-4711@h/v1",
        "https://u:p/geheim-4711@h/v1",
        "https://u:8000/geheim-4711@h/v1",
        "https://u:p@geheim-4711@h",
        "https://u:p?geheim-4711@h",
        "u:geheim-4711@h/v1",
        "https:/u:geheim-4711@h/v1",
        "geheim-4711",
        "https://h:geheim-4711",
        "https://h:99999/v1",
        "https://:80/v1",
        "https://[/v1",
        "https://[x]/v1",
    ],
)
def test_what_is_no_base_url_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    """A password with a slash in it, or before which no scheme stood, was printed."""
    assert refusal(tmp_path, ONE.replace("https://api.openai.com/v1", f"'{url}'")) == [
        f"3: models.0.base_url: {NO_URL}"
    ]


@pytest.mark.parametrize("value", ["2026-03-10", "no", "4.1", "7", "null", "[gpt]", "{a: b}", "2026-03-10T12:00:00Z"])
def test_what_yaml_takes_for_something_else_is_no_name(tmp_path: Path, value: str) -> None:
    """A model `no` was false, and 4.10 became 4.1."""
    assert refusal(tmp_path, ONE.replace("gpt", value)) == ["4: models.0.model: Input should be a valid string"]
    assert read(tmp_path, ONE.replace("gpt", f'"{value}"')).file.models[0].model == value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('" "', "String should have at least 1 character"),
        ("x" * 301, "String should have at most 300 characters"),
        (r'"a\0b"', r"String should match pattern '^[^\x00-\x1f\x7f]*$'"),
        (r'"a\nb"', r"String should match pattern '^[^\x00-\x1f\x7f]*$'"),
        (r'"a\ud800b"', "Input should be a valid string, unable to parse raw data as a unicode string"),
    ],
)
def test_a_name_that_no_database_keeps_is_refused(tmp_path: Path, value: str, told: str) -> None:
    assert refusal(tmp_path, ONE.replace("openai\n", f"{value}\n")) == [f"2: models.0.provider: {told}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("models: []", "1: models: Tuple should have at least 1 item after validation, not 0"),
        ("\nmodels:", "2: models: Input should be a valid tuple"),
        ("models: {a: b}", "1: models: Input should be a valid tuple"),
        ("models:\n- a\n", "2: models.0: Input should be a valid dictionary or instance of Target"),
        ("models: gpt", "1: models: Input should be a valid tuple"),
        ("concurrency: 1", "1: models: Field required"),
    ],
)
def test_a_file_without_a_list_of_models_is_refused(tmp_path: Path, content: str, told: str) -> None:
    assert refusal(tmp_path, content) == [told]


@pytest.mark.parametrize("content", ["", "# nothing\n", "- a\n", "models", "null", "7"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    assert refusal(tmp_path, content) == ["1: no mapping of names to values; see the docs for an example"]


def test_a_model_that_stands_there_twice_is_told_at_both_places(tmp_path: Path) -> None:
    again = "- {provider: openai, base_url: 'https://other/v1', model: gpt}\n"
    text = "openai gpt chatCompletion stands here 2 times"
    assert refusal(tmp_path, ONE + again) == [f"2: models.0: {text}", f"5: models.1: {text}"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"concurrency: 3\nconcurrency: 4\n{ONE}", ["1: concurrency", "2: concurrency"]),
        (f"{ONE}  model: gpt-2\n", ["4: model", "5: model"]),
        (f"{ONE}  'model': gpt-2\n", ["4: model", "5: model"]),
        (f"provider_concurrency:\n  openai: 1\n  openai: 2\n{ONE}", ["2: openai", "3: openai"]),
    ],
)
def test_a_field_that_stands_twice_is_refused(tmp_path: Path, content: str, told: list[str]) -> None:
    """YAML keeps the last in silence: the second list `models` was the only one that was probed."""
    assert refusal(tmp_path, content) == [f"{one} stands here 2 times" for one in told]


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = f"concurrency: 0\n{ONE}  verify: 99\n  colour: red\n  colour: blue\n- model: 5\ncredits_per_day: -1\n"
    assert refusal(tmp_path, text) == [
        "1: concurrency: Input should be greater than or equal to 1",
        "6: models.0.verify: Input should be less than or equal to 10",
        "7: colour stands here 2 times",
        "8: colour stands here 2 times",
        "8: models.0.colour: unknown field",
        "9: models.1.base_url: Field required",
        "9: models.1.model: Input should be a valid string",
        "9: models.1.provider: Field required",
        "10: credits_per_day: Input should be greater than or equal to 0",
    ]
    text = f"{ONE}  api_key_env: NO_1\n- {{provider: b, base_url: 'https://h', model: c, api_key_env: NO_2}}\n"
    assert refusal(tmp_path, f"provider_concurrency: {{x: 1, y: 1}}\n{text}") == [
        "1: provider_concurrency.x: no model of this provider is listed",
        "1: provider_concurrency.y: no model of this provider is listed",
        "6: models.0.api_key_env: the environment variable NO_1 is not set",
        "7: models.1.api_key_env: the environment variable NO_2 is not set",
    ]


def test_the_mistake_of_a_field_that_overrides_one_of_an_anchor_is_told_where_it_is(tmp_path: Path) -> None:
    text = (
        "models:\n- &a\n  provider: openai\n  base_url: https://h\n  model: gpt\n"
        "- <<: *a\n  model: 4.1\n- <<: *a\n  model: x\n  verify: 99\n"
    )
    assert refusal(tmp_path, text) == [
        "7: models.1.model: Input should be a valid string",
        "10: models.2.verify: Input should be less than or equal to 10",
    ]


def test_a_key_that_was_written_instead_of_its_variables_name_is_not_shown(tmp_path: Path) -> None:
    """`hf_…` and `gsk_…` are names that a variable might have."""
    with pytest.raises(FileRefused) as caught:
        read(tmp_path, f"{ONE}  api_key_env: hf_abcDEF123\n")
    assert str(caught.value) == f"{tmp_path}/probes.yaml:5: models.0.api_key_env: this environment variable is not set"


# What is no YAML


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (f"{ONE}  x: [1, 2\ny: 1\n", "6: no YAML: expected ',' or ']', but got ':'"),
        ("models:\n\t- a\n", "2: no YAML: found character '\\t' that cannot start any token"),
        ("models: *a\n", "1: no YAML: found undefined alias 'a'"),
        (f"{ONE}---\n{ONE}", "5: no YAML: but found another document"),
        ("a: 1\n? [a, b]\n: c\n", "2: no YAML: found unhashable key"),
        ("a: 1\n? {a: b}\n: c\n", "2: no YAML: found unhashable key"),
        ("a: 1\nb: 'x\x00'\n", "2: no YAML: special characters are not allowed"),
        (b"a: 1\nb: \xff\n", "2: not UTF-8: invalid start byte"),
        (ONE.encode("utf-16"), "1: not UTF-8: invalid start byte"),
        (f"\nconcurrency: 2026-13-45\n{ONE}", "2: no YAML: this is no timestamp; write text in quotes"),
        (f"\nconcurrency: {'9' * 5000}\n{ONE}", "2: no YAML: this is no int; write text in quotes"),
        (f"{ONE}  verify: !!int many\n", "5: no YAML: this is no int; write text in quotes"),
        (f"{ONE}  verify: !!bool many\n", "5: no YAML: this is no bool; write text in quotes"),
        (f"{ONE}  verify: !!timestamp soon\n", "5: no YAML: this is no timestamp; write text in quotes"),
    ],
    ids=range(14),
)
def test_broken_yaml_is_refused_with_its_line(tmp_path: Path, content: str | bytes, told: str) -> None:
    """The 13th month came out as a traceback without file and line."""
    assert refusal(tmp_path, content) == [told]


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:pathlib.Path.touch", "!!python/object/new:os.system", "!!python/name:os.system", "!x"],
)
def test_a_tag_of_another_language_is_refused_and_not_executed(tmp_path: Path, tag: str) -> None:
    said = refusal(tmp_path, f"{ONE}x: {tag} ['{tmp_path}/touched']\n")
    assert said[0].startswith("5: no YAML: could not determine a constructor for the tag")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("nested", ["[" * 5000 + "]" * 5000, "{a: " * 5000 + "}" * 5000, "- " * 5000])
def test_a_file_nested_without_end_is_refused(tmp_path: Path, nested: str) -> None:
    assert refusal(tmp_path, f"{ONE}x:\n {nested}\n") == ["1: lists and mappings are nested too deeply"]


@pytest.mark.parametrize("loop", ["&a [*a]", "&a {b: *a}"])
def test_an_anchor_within_itself_is_refused(tmp_path: Path, loop: str) -> None:
    assert refusal(tmp_path, f"{ONE}x: {loop}\n") == ["5: x: unknown field"]


def test_aliases_of_aliases_are_refused_in_no_time(tmp_path: Path) -> None:
    """Thirty lines of ten aliases each are 10^30 lists to who visits all of them."""
    lines = ["x0: &x0 [a]"] + [f"x{number}: &x{number} [{f'*x{number - 1},' * 10}]" for number in range(1, 31)]
    assert len(refusal(tmp_path, "\n".join(lines) + f"\n{ONE}")) == 31


@given(
    st.text(max_size=60) | st.text("-:{}[]?&*!<>|'\"#,\n ab1%@~.", max_size=60), st.sampled_from(["", "models: ", ONE])
)
@examples(150)
def test_no_file_ends_in_anything_but_a_refusal(tmp_path: Path, text: str, before: str) -> None:
    try:
        probes = read(tmp_path, (before + text).encode("utf-8", "surrogatepass"))
    except FileRefused as error:
        assert str(error).startswith(f"{tmp_path}/probes.yaml:")
    else:
        assert probes.file.models


# Files that cannot be read


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "no.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(FileRefused) as caught:
            read_probes(path, lambda _: None)
        assert str(caught.value) == f"{path}: {told}. Correct MODEL_PROBES_FILE."


# Keys


def test_no_text_of_the_probes_shows_a_key(tmp_path: Path) -> None:
    probes = read(tmp_path, FULL)
    assert probes.secrets() == [SECRET]
    for shown in (repr(probes), str(probes), str(vars(probes)), probes.file.model_dump_json(), repr(probes.file)):
        assert SECRET not in shown


def test_a_mistake_elsewhere_shows_no_key(tmp_path: Path) -> None:
    refusal(tmp_path, FULL.replace("verify: 0", "verify: 99").replace("llama/3", "7"))


def test_models_that_share_a_key_have_it_once(tmp_path: Path) -> None:
    text = f"{ONE}  api_key_env: OPENAI_KEY\n" + "".join(
        f"- {{provider: openai, base_url: 'https://h', model: {name}, api_key_env: {key}}}\n"
        for name, key in (("a", "OPENAI_KEY"), ("b", "OTHER_KEY"))
    )
    probes = read(tmp_path, text)
    assert [probes.key_of(target) for target in probes.file.models] == [SECRET, SECRET, KEYS["OTHER_KEY"]]
    assert sorted(probes.secrets()) == sorted(KEYS.values())


# `ops-pipeline check`


def checked(path: Path | None, keys: Mapping[str, str] = KEYS) -> list[Check]:
    return check_probes(path, lambda name: SecretStr(keys[name]) if name in keys else None)


def test_the_check_says_nothing_without_a_file() -> None:
    assert checked(None) == []


def test_the_check_counts_the_models_of_a_valid_file(tmp_path: Path) -> None:
    path = tmp_path / "probes.yaml"
    path.write_text(FULL)
    detail = f"{path} lists 2 models, and every key is set"
    assert checked(path) == [Check("MODEL_PROBES_FILE", ok=True, detail=detail)]


def test_the_check_has_a_line_for_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "probes.yaml"
    path.write_text(
        f"provider_concurrency: {{x: 1}}\n{FULL.replace('provider_concurrency: {openai: 4, local: 2}', '')}"
    )
    assert [(one.name, one.ok, one.detail) for one in checked(path, {})] == [
        ("MODEL_PROBES_FILE", False, f"{path}:1: provider_concurrency.x: no model of this provider is listed"),
        (
            "MODEL_PROBES_FILE",
            False,
            f"{path}:15: models.0.api_key_env: the environment variable OPENAI_KEY is not set",
        ),
    ]


def test_the_check_says_that_the_file_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    detail = f"{path}: No such file or directory. Correct MODEL_PROBES_FILE."
    assert checked(path) == [Check("MODEL_PROBES_FILE", ok=False, detail=detail)]
