"""Training, loading and framing."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from sslnlp.recipe import load_recipe, run
from sslnlp.recipe.build import build_parts, resolve
from sslnlp.tokenizer import (
    SENTINELS,
    SPECIALS,
    drawable_ids,
    framing,
    load_tokenizer,
    set_framing,
    special_mask,
    train_tokenizer,
)
from sslnlp.tokenizer.counting import WordCounts
from sslnlp.tokenizer.specials import ROLES
from sslnlp.tokenizer.training import MAX_SYMBOLS, MAX_WORDS
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny


@pytest.mark.parametrize("kind", KINDS)
def test_specials_come_first_and_by_name(kind):
    tokenizer = tiny(kind)
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(len(SPECIALS)))
    named = [tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token]
    assert [*named, tokenizer.bos_token, tokenizer.eos_token] == list(SPECIALS[:7])
    assert set(SENTINELS) <= set(tokenizer.all_special_tokens)
    assert special_mask(tokenizer)[: len(SPECIALS)].all()
    assert not special_mask(tokenizer)[len(SPECIALS) :].any()
    np.testing.assert_array_equal(drawable_ids(tokenizer), np.arange(len(SPECIALS), len(tokenizer)))


@pytest.mark.parametrize("style", ["encoder", "decoder", "seq2seq"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_reloaded_by_stock_transformers(kind, style, tmp_path):
    tokenizer = train_tokenizer((ENGLISH + CHINESE) * 2, vocab_size=600, algorithm=kind)
    set_framing(tokenizer, style).save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ENGLISH, *CHINESE, "  two  spaces\n\nand lines\t!", "[MASK] <extra_id_3>"]:
        assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        ids = tokenizer(text)["input_ids"]
        assert reloaded.decode(ids) == tokenizer.decode(ids)
    assert reloaded("a", "b")["input_ids"] == tokenizer("a", "b")["input_ids"]
    assert list(reloaded("a")) == ["input_ids", "attention_mask"]


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_byte_level_gives_back_any_text(text):
    tokenizer = tiny("bpe")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_bytes_are_the_bytes_of_the_text(text):
    """Byte b is id len(SPECIALS) + b: nothing to train, nothing unknown, and the text comes back whole."""
    tokenizer = tiny("bytes")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids == [len(SPECIALS) + byte for byte in text.encode()]
    assert tokenizer.decode(ids) == text


def test_bytes_need_no_text_and_no_size(tmp_path):
    tokenizer = train_tokenizer(iter([]), vocab_size=7, algorithm="bytes")
    assert len(tokenizer) == len(SPECIALS) + 256
    assert tokenizer.get_vocab() == tiny("bytes").get_vocab()
    assert tokenizer.convert_tokens_to_ids(list(SPECIALS)) == list(range(len(SPECIALS)))
    assert special_mask(tokenizer).sum() == len(SPECIALS)
    np.testing.assert_array_equal(drawable_ids(tokenizer), np.arange(len(SPECIALS), len(tokenizer)))
    set_framing(tokenizer, "decoder").save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*ENGLISH, *CHINESE, "  two  spaces\n\nand lines\t!", "🙂 [MASK] <extra_id_3>", "\x00\x7f\x85"]:
        assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert reloaded.decode(reloaded(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer("é")["input_ids"] == [tokenizer.bos_token_id, len(SPECIALS) + 0xC3, len(SPECIALS) + 0xA9]
    lowered = train_tokenizer([], algorithm="bytes", lowercase=True)
    assert lowered.decode(lowered("The É", add_special_tokens=False)["input_ids"]) == "the é"


def test_training_merges_frequent_words_whole():
    tokenizer = train_tokenizer(["gazebo " * 50, "the lamp is lit"], vocab_size=400)
    assert len(tokenizer.tokenize(" gazebo")) == 1
    assert len(tokenizer.tokenize(" obezag")) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_without_a_space_leaves_no_text_with_an_unknown_token(kind):
    tokenizer = train_tokenizer(["灯塔看守人看见船。", "船看见灯塔。"] * 20, vocab_size=500, algorithm=kind)
    ids = tokenizer("看见灯塔。", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "看见灯塔。"  # WordPiece writes spaces between signs


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase(kind):
    tokenizer = train_tokenizer(ENGLISH, vocab_size=500, algorithm=kind, lowercase=True)
    upper, lower = (tokenizer(t)["input_ids"] for t in ("The Lighthouse", "the lighthouse"))
    assert upper == lower
    assert tokenizer("The Lighthouse")["input_ids"] != tokenizer("The Lightship")["input_ids"]


def test_training_reads_a_stream_once():
    tokenizer = train_tokenizer(iter(ENGLISH * 3), vocab_size=450)
    assert tokenizer.get_vocab() == train_tokenizer(ENGLISH * 3, vocab_size=450).get_vocab()


def test_memory_budget_drops_the_rarest_words_and_says_so(caplog):
    rare = [f"w{i}q{i * 7919 % 1009}" for i in range(6000)]
    with caplog.at_level(logging.WARNING, logger="sslnlp"):
        tokenizer = train_tokenizer([*rare[:3000], "lighthouse " * 500, *rare[3000:]], vocab_size=500, memory_mb=1)
    assert "memory_mb=1" in caplog.text
    assert len(tokenizer.tokenize("lighthouse")) <= 2
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="sslnlp"):
        train_tokenizer(ENGLISH, vocab_size=500, memory_mb=64)
    assert not caplog.records


def test_counts_stay_bounded_and_add_up():
    counts = WordCounts(split=str.split, memory_mb=1)
    total = 0
    for start in range(0, 40_000, 500):
        words = [f"w{i}" for i in range(start, start + 500)] + ["common"] * 50
        total += len(words)
        counts.add([" ".join(words)])
        assert len(counts._chunks) <= counts.max_chunks + 600
        assert len(counts.words) <= counts.max_words
    counts.finish()
    assert counts.words.total() + counts.dropped == total
    assert counts.words["common"] == 50 * 80


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 10**12), min_size=1, max_size=40),
    st.integers(50, 5000),
)
@settings(deadline=None)
def test_scaled_counts_keep_both_bounds_and_the_proportions(words, bound):
    counts = WordCounts(split=str.split, memory_mb=1)
    counts.words.update(words)
    scaled = dict(counts.scaled(bound, 4 * bound))
    total, symbols = counts.words.total(), sum(len(w) * c for w, c in words.items())
    scale = min(1.0, bound / total, 4 * bound / symbols)
    assert sum(scaled.values()) <= bound + 1
    for word, count in words.items():  # systematic sampling: within one of the exact share
        assert abs(scaled.get(word, 0) - count * scale) < 1 + 1e-6 * count * scale
    if scale == 1.0:
        assert scaled == words


def test_bounds_keep_pair_counts_inside_32_bits():
    assert MAX_WORDS <= MAX_SYMBOLS < 2**31


def test_one_enormous_line_is_trained_on():
    tokenizer = train_tokenizer(["lantern " * 200_000 + "x" * 3_000_000], vocab_size=420)
    assert len(tokenizer.tokenize(" lantern")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"algorithm": "bp"}, ["'bp'", "bpe, bytes, unigram, wordpiece"]),
        ({"vocab_size": 300}, ["vocab_size=300", str(len(SPECIALS) + 256)]),
        ({"vocab_size": 120, "algorithm": "wordpiece"}, ["vocab_size=120", "wordpiece", "bpe"]),
        ({"vocab_size": 120, "algorithm": "unigram"}, ["vocab_size=120", "unigram"]),
        ({"memory_mb": 0}, ["memory_mb"]),
    ],
)
def test_bad_options_are_one_clear_line(arguments, words):
    with pytest.raises(UserError) as error:
        train_tokenizer(ENGLISH, **arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_refused(texts):
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(texts)


def test_vocabulary_just_large_enough_is_enough():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=len(SPECIALS) + 256)
    assert len(tokenizer) == len(SPECIALS) + 256
    with pytest.raises(UserError) as error:
        train_tokenizer(ENGLISH, vocab_size=130, algorithm="wordpiece")
    needed = int(str(error.value).split(" need ")[1].split(";")[0])
    assert len(train_tokenizer(ENGLISH, vocab_size=needed, algorithm="wordpiece")) == needed


def test_lone_surrogates_do_not_stop_training():
    assert len(train_tokenizer(["lamp \ud800 lamp", *ENGLISH], vocab_size=450)) > 369


@pytest.mark.parametrize("kind", KINDS)
def test_framing_is_what_the_tokenizer_itself_puts(kind):
    tokenizer = train_tokenizer(ENGLISH, vocab_size=500, algorithm=kind)
    plain = tokenizer("the lamp", add_special_tokens=False)["input_ids"]
    encoder, decoder = framing(tokenizer, "encoder"), framing(tokenizer, "decoder")
    assert encoder.prefix == (tokenizer.cls_token_id,)
    assert encoder.suffix == (tokenizer.sep_token_id,)
    assert decoder.prefix == (tokenizer.bos_token_id,)
    assert decoder.suffix == (tokenizer.eos_token_id,)
    assert set_framing(tokenizer, "encoder")("the lamp")["input_ids"] == [*encoder.prefix, *plain, *encoder.suffix]
    assert set_framing(tokenizer, "decoder")("the lamp")["input_ids"] == [*decoder.prefix, *plain]


def test_framing_falls_back_to_eos_as_gpt2_does(tmp_path):
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.bos_token = tokenizer.cls_token = tokenizer.sep_token = None
    eos = (tokenizer.eos_token_id,)
    assert framing(tokenizer, "decoder").prefix == framing(tokenizer, "decoder").suffix == eos
    assert framing(tokenizer, "encoder").prefix == ()
    assert framing(tokenizer, "encoder").suffix == eos


def test_a_foreign_tokenizer_keeps_its_framing(foreign):
    before = foreign("a lamp")["input_ids"]
    assert set_framing(foreign, "decoder") is foreign
    assert foreign("a lamp")["input_ids"] == before


@pytest.fixture
def foreign():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "lamp": 2, "</s>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def test_load(tmp_path):
    tiny("bpe").save_pretrained(tmp_path / "here")
    assert load_tokenizer(str(tmp_path / "here")).get_vocab() == tiny("bpe").get_vocab()
    with pytest.raises(UserError, match="there is no tokenizer folder") as error:
        load_tokenizer(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"no tokenizer could be loaded .*\(the folder holds no tokenizer\.json\)"
    ) as error:
        load_tokenizer(tmp_path / "empty")
    assert "\n" not in str(error.value)
    (tmp_path / "here" / "tokenizer.json").write_text("{ broken")
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path / "here"))


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_mask_in_a_text_takes_the_space_before_it_as_in_training(algorithm, tmp_path):
    texts = [f"The city is nice in France and {i} miles from the sea" for i in range(100)]
    train_tokenizer(texts, vocab_size=500, algorithm=algorithm).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    whole = tokenizer("The city is nice in France")["input_ids"]
    masked = tokenizer("The city is [MASK] in France")["input_ids"]
    place = masked.index(tokenizer.mask_token_id)
    behind = len(masked) - place - 1
    assert masked[:place] == tokenizer("The city is")["input_ids"][:-1]
    assert masked[-behind:] == whole[-behind:]


def test_a_vocabulary_with_holes_trains_and_is_exported(tmp_path):
    foreign = json.loads(tiny("wordpiece").backend_tokenizer.to_str())
    foreign["model"]["vocab"] = {t: i + 70_000 * (i > 200) for t, i in foreign["model"]["vocab"].items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(foreign)), **ROLES)
    store = build_store(ENGLISH, tokenizer, tmp_path / "store", fingerprint="f")
    assert store.tokens(0).tolist() == tokenizer(ENGLISH[0], add_special_tokens=False)["input_ids"]

    tokenizer.save_pretrained(tmp_path / "holes")
    (tmp_path / "corpus.txt").write_text("\n".join(ENGLISH * 9))
    keys = [f"data.train={tmp_path / 'corpus.txt'}", f"data.cache={tmp_path / 'cache'}", f"out={tmp_path / 'out'}"]
    keys += ["model.size=nano", "train.steps=2", "train.batch_size=2", "data.seq_length=32"]
    keys += ["model.config.hidden_size=8", "model.config.num_hidden_layers=1"]  # 70,000 rows of an embedding are many
    run(load_recipe("pretrain_bert", [*keys, f"tokenizer.path={tmp_path / 'holes'}"]))

    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "out" / "export")
    assert again.config.vocab_size == max(tokenizer.get_vocab().values()) + 1


@pytest.mark.parametrize(("style", "said"), [("encoder", True), ("decoder", False)])
def test_a_tokenizer_that_ends_a_prompt_is_said_before_a_decoder_trains(style, said, tmp_path, caplog):
    ours = tiny("bpe").backend_tokenizer.to_str()
    framed = set_framing(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(ours), **ROLES), style)
    foreign = framed.backend_tokenizer.to_str().replace("<extra_id_7>", "<other>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(foreign), **ROLES).save_pretrained(tmp_path / "t")
    (tmp_path / "corpus.txt").write_text("\n".join(ENGLISH * 9))
    keys = [f"data.train={tmp_path / 'corpus.txt'}", f"data.cache={tmp_path}", f"tokenizer.path={tmp_path / 't'}"]
    build_parts(resolve(load_recipe("pretrain_gpt", [*keys, "data.seq_length=32"]))[0])
    assert ("puts [SEP] behind a prompt" in caplog.text) is said
