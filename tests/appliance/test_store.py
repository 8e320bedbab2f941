"""The store: names, whole models, reported damage, and removal that takes no more than it may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from appliance.errors import (
    ModelMissingError,
    StoreAccessError,
    StoreBusyError,
    StoreCorruptError,
)
from appliance.layout import Paths
from appliance.model import CONFIG_MEDIA, LAYER_MEDIA, encode_image, parse_image
from appliance.store import Store, StoreWriter
from bundler.format.digest import Descriptor, Digest
from bundler.format.name import ModelName


def name(text: str) -> ModelName:
    return ModelName.parse(text)


def layer(kind: str, data: bytes) -> Descriptor:
    return Descriptor(media_type=LAYER_MEDIA + kind, digest=Digest.of(data), size_bytes=len(data))


def manifest(weights: bytes, *texts: tuple[str, bytes], config: bytes = b"{}") -> bytes:
    described = Descriptor(
        media_type=CONFIG_MEDIA, digest=Digest.of(config), size_bytes=len(config)
    )
    return encode_image(
        config=described,
        layers=(layer("model", weights), *(layer(kind, text) for kind, text in texts)),
    )


def put(store: Store, text: str, weights: bytes, *texts: tuple[str, bytes]) -> bytes:
    """Install a model whose weights are any bytes."""
    with store.writing() as writer:
        return put_with(writer, text, weights, texts)


def put_with(
    writer: StoreWriter, text: str, weights: bytes, texts: Iterable[tuple[str, bytes]] = ()
) -> bytes:
    data = manifest(weights, *texts)
    for content in (weights, b"{}", *(one for _, one in texts)):
        writer.put(content)
    writer.point(name(text), data)
    return data


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Paths(tmp_path / "store"))


def test_store_that_does_not_exist_is_empty(store: Store) -> None:
    assert store.list() == ()
    assert not store.paths.root.exists()


def test_unknown_model_is_refused_in_ollama_s_words(store: Store) -> None:
    put(store, "demo", b"w")
    with pytest.raises(ModelMissingError, match=r"^model 'nothing:latest' not found$"):
        store.resolve(name("nothing"))
    with pytest.raises(ModelMissingError):
        store.remove(name("nothing"))
    with pytest.raises(ModelMissingError):
        store.copy(name("nothing"), name("something"))


def test_model_reads_back_as_it_was_put(store: Store) -> None:
    data = put(
        store,
        "demo",
        b"weights",
        ("template", b"T"),
        ("system", b"S"),
        ("params", b'{"top_k":3,"stop":["a"]}'),
        ("params", b'{"top_k":4}'),
        ("license", b"L1"),
        ("license", b"L2"),
        ("messages", b'[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]'),
        ("adapter", b"lora"),
        ("projector", b"mmproj"),
    )
    model = store.resolve(name("demo"))
    assert model.digest == Digest.of(data)
    assert model.size_bytes == sum(part.size_bytes for part in parse_image(data).parts)
    assert (model.template, model.system) == ("T", "S")
    assert model.parameters == {"top_k": 4, "stop": ["a"]}
    assert model.licenses == ("L1", "L2")
    assert model.messages == (("user", "q"), ("assistant", "a"))
    assert [path.read_bytes() for path in (*model.adapters, *model.projectors)] == [
        b"lora",
        b"mmproj",
    ]
    assert model.provenance is None


def test_id_is_the_digest_of_the_manifest_file(store: Store) -> None:
    put(store, "demo", b"w")
    path = store.paths.root / "manifests/registry.ollama.ai/library/demo/latest"
    assert store.resolve(name("demo")).digest == Digest.of(path.read_bytes())


def test_names_match_whatever_their_case(store: Store) -> None:
    put(store, "Demo:Q4", b"w")
    assert store.resolve(name("dEMO:q4")).name == name("Demo:Q4")
    put(store, "demo:q4", b"other")
    assert [model.name.short() for model in store.list()] == ["Demo:Q4"]
    put(store, "demo:q8", b"w")
    assert {model.name.short() for model in store.list()} == {"Demo:Q4", "Demo:q8"}


def test_newest_model_is_listed_first(store: Store) -> None:
    for number, text in enumerate(("old", "new", "middle")):
        put(store, text, str(number).encode())
    for text, at_s in (("old", 100), ("new", 300), ("middle", 200)):
        os.utime(store.paths.reference(name(text)), (at_s, at_s))
    assert [model.name.model for model in store.list()] == ["new", "middle", "old"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"layers":[]}', b'{"layers":[{"digest":"sha256:x"}]}', b"\xff" * 10],
    ids=["empty", "cut", "list", "no model", "bad digest", "binary"],
)
def test_damaged_manifest_is_reported_and_hides_nothing_else(store: Store, damage: bytes) -> None:
    put(store, "good", b"w")
    put(store, "bad", b"v")
    store.paths.reference(name("bad")).write_bytes(damage)
    survey = store.survey()
    assert [model.name.model for model in survey.models] == ["good"]
    assert [fault.path for fault in survey.faults] == [store.paths.reference(name("bad"))]
    with pytest.raises(StoreCorruptError):
        store.resolve(name("bad"))


def test_missing_and_truncated_blobs_are_reported(store: Store) -> None:
    put(store, "gone", b"weights 1")
    put(store, "cut", b"weights 2")
    store.paths.blob(Digest.of(b"weights 1")).unlink()
    path = store.paths.blob(Digest.of(b"weights 2"))
    path.chmod(0o644)
    path.write_bytes(b"weights")
    reasons = {fault.path.parent.name: fault.reason for fault in store.survey().faults}
    assert "expected 9 bytes, found 7" in reasons["cut"]
    assert "is missing" in reasons["gone"]


def test_files_that_are_no_names_are_passed_over(store: Store) -> None:
    put(store, "demo", b"w")
    library = store.paths.manifests / "registry.ollama.ai" / "library"
    (library / ".DS_Store").write_bytes(b"?")
    (library / "demo" / ".latest.swp").write_bytes(b"?")
    (library / "demo" / "folder").mkdir()
    (store.paths.manifests / "stray").write_bytes(b"?")
    survey = store.survey()
    assert [model.name.short() for model in survey.models] == ["demo:latest"]
    assert survey.faults == ()


def test_upper_case_digests_and_old_config_blobs_are_understood(store: Store) -> None:
    put(store, "demo", b"w")
    path = store.paths.reference(name("demo"))
    document = json.loads(path.read_bytes())
    document["layers"][0]["digest"] = document["layers"][0]["digest"].replace(
        Digest.of(b"w").hex, Digest.of(b"w").hex.upper()
    )
    del document["config"]
    path.write_bytes(json.dumps(document).encode())
    assert store.resolve(name("demo")).config == {}


def test_store_that_is_a_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"?")
    store = Store(Paths(tmp_path / "store"))
    with pytest.raises(StoreAccessError) as caught, store.writing():
        pass
    assert "--store" in caught.value.hint
    with pytest.raises(StoreAccessError):
        store.list()


def test_shared_files_stay_until_their_last_model_goes(store: Store) -> None:
    put(store, "one", b"weights", ("system", b"A"))
    put(store, "two", b"weights", ("system", b"B"))
    store.remove(name("one"))
    assert store.resolve(name("two")).model_path.read_bytes() == b"weights"
    assert not store.paths.blob(Digest.of(b"A")).exists()
    freed = store.remove(name("two"))
    assert freed == len(b"weights") + len(b"B") + len(b"{}")
    assert list(store.paths.blobs.iterdir()) == []
    assert list(store.paths.manifests.iterdir()) == []


def test_nothing_is_removed_while_another_manifest_cannot_be_read(store: Store) -> None:
    put(store, "one", b"weights")
    put(store, "two", b"other")
    store.paths.reference(name("two")).write_bytes(b"{")
    assert store.remove(name("one")) == 0
    assert store.paths.blob(Digest.of(b"weights")).exists()


def test_damaged_model_can_be_removed(store: Store) -> None:
    put(store, "bad", b"w")
    store.paths.reference(name("bad")).write_bytes(b"{")
    store.remove(name("bad"))
    assert store.survey().faults == ()


def test_copy_keeps_the_id(store: Store) -> None:
    put(store, "one", b"weights")
    store.copy(name("ONE"), name("localhost:5000/team/two:v1"))
    assert len({model.digest for model in store.list()}) == 1
    assert len(store.list()) == 2


def test_second_writer_is_told_who_the_first_is(store: Store) -> None:
    with store.writing(), pytest.raises(StoreBusyError, match=str(os.getpid())):
        store.remove(name("demo"))
    with store.writing():
        pass


def test_lock_of_a_killed_process_is_free(store: Store) -> None:
    holder = (
        "import os, signal, sys; from pathlib import Path\n"
        "from appliance.layout import Paths; from appliance.store import Store\n"
        "with Store(Paths(Path(sys.argv[1]))).writing(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", holder, str(store.paths.root)], check=False)
    with store.writing():
        pass


def test_removal_that_a_crash_interrupted_is_carried_through(store: Store) -> None:
    put(store, "demo", b"weights")
    reference = store.paths.reference(name("demo"))
    reference.rename(store.paths.staging / "former")
    with store.writing():
        pass
    assert list(store.paths.blobs.iterdir()) == []
    assert list(store.paths.staging.iterdir()) == []


def test_survey_is_plain_values(store: Store) -> None:
    put(store, "demo", b"w")
    assert asdict(store.survey())["faults"] == ()


NAMES = st.sampled_from(["a", "A", "b:x", "b:X", "team/a", "host:1/team/a:y"])
CONTENTS = st.sampled_from([b"1", b"2", b"3"])


class StoreMachine(RuleBasedStateMachine):
    """A dictionary of names to weights is what the store must behave like."""

    models = Bundle("models")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Paths(Path(self.folder.name) / "store"))
        self.known: dict[tuple[str, ...], bytes] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(text=NAMES, weights=CONTENTS, system=CONTENTS)
    def install(self, text: str, weights: bytes, system: bytes) -> None:
        put(self.store, text, weights, ("system", system))
        self.known[name(text).folded()] = weights

    @rule(text=NAMES)
    def remove(self, text: str) -> None:
        if name(text).folded() in self.known:
            self.store.remove(name(text))
            del self.known[name(text).folded()]
        else:
            with pytest.raises(ModelMissingError):
                self.store.remove(name(text))

    @rule(source=NAMES, destination=NAMES)
    def copy(self, source: str, destination: str) -> None:
        if name(source).folded() in self.known:
            self.store.copy(name(source), name(destination))
            self.known[name(destination).folded()] = self.known[name(source).folded()]
        else:
            with pytest.raises(ModelMissingError):
                self.store.copy(name(source), name(destination))

    @invariant()
    def names_and_weights_are_as_known(self) -> None:
        survey = self.store.survey()
        assert survey.faults == ()
        found = {m.name.folded(): m.model_path.read_bytes() for m in survey.models}
        assert found == self.known

    @invariant()
    def no_blob_is_left_that_nobody_needs(self) -> None:
        needed = {
            part.digest
            for stored in self.store.names()
            for part in parse_image(self.store.manifest(stored)).parts
        }
        blobs = self.store.paths.blobs
        found = {path.name for path in blobs.iterdir()} if blobs.is_dir() else set()
        assert found == {f"sha256-{digest.hex}" for digest in needed}


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestStore = StoreMachine.TestCase
