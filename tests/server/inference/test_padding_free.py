"""Graphs from which padding was folded away: the same bits, of fewer tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from shoal_server.inference.collate import collate
from shoal_server.inference.padding_free import METADATA_KEY, fold_padding, same_vectors
from tests.server.inference.transformer import NAN_ID, VOCABULARY, WIDTH, transformer

Float32 = npt.NDArray[np.float32]


class Vectors:
    """Runs a graph on batches of token ids."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: Sequence[Sequence[int]]) -> Float32:
        ids, mask = collate(batch, 0)
        feeds = {"input_ids": ids, "attention_mask": mask}
        return np.asarray(self.session.run(["embedding"], feeds)[0])


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    assert fold_padding(copy)
    return copy


PLAIN = transformer()
BOTH = Vectors(PLAIN), Vectors(folded(PLAIN))
SOME = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
BATCHES = st.lists(st.lists(st.integers(0, NAN_ID - 1), max_size=12), min_size=1, max_size=6)


@given(BATCHES)
@settings(max_examples=50, deadline=None)
def test_the_bits_are_those_of_the_padded_graph(batch: list[list[int]]) -> None:
    """Whatever the lengths, texts without tokens among them."""
    plain, free = BOTH
    np.testing.assert_array_equal(plain(batch), free(batch))


@given(BATCHES)
@settings(max_examples=25, deadline=None)
def test_a_vector_does_not_depend_on_its_batch(batch: list[list[int]]) -> None:
    """The row of a text is the row of the text alone."""
    _, free = BOTH
    alone = np.concatenate([free([text]) for text in batch])
    np.testing.assert_array_equal(alone, free(batch))


def test_what_is_not_finite_stays_with_its_text() -> None:
    """Padding repeats tokens of its own text only."""
    _, free = BOTH
    rows = free([[NAN_ID], [1, 2, 3, 4], [NAN_ID, 5], [6]])
    assert np.isfinite(rows).all(axis=1).tolist() == [False, True, False, True]


def products_of(model: onnx.ModelProto) -> Iterator[str]:
    """What the products with weights take."""
    weights = {each.name for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            yield node.input[0]


def test_all_products_with_weights_work_on_tokens() -> None:
    """Only attention and pooling are left with the rectangle."""
    model = folded(PLAIN)
    taken = list(products_of(model))
    assert len(taken) == 6
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    assert all(shapes[name][0].dim_value == 1 for name in taken)


def test_tokens_are_folded_and_unfolded_no_more_often_than_need_be() -> None:
    """Once in, once around attention, once out: what lies between stays folded."""
    gathers = [node.input[1] for node in folded(PLAIN).graph.node if node.op_type == "Gather"]
    assert gathers.count("shoal/places/kept") == 2
    assert gathers.count("shoal/places/row") == 4  # query, key, value, hidden


def test_a_folded_graph_says_so() -> None:
    """In its metadata, which survive ONNX Runtime's optimiser."""
    meta = Vectors(folded(PLAIN)).session.get_modelmeta().custom_metadata_map
    assert METADATA_KEY in meta


def test_a_folded_graph_stays_as_it_is() -> None:
    """Folding is done once."""
    model = folded(PLAIN)
    before = model.SerializeToString()
    assert not fold_padding(model)
    assert model.SerializeToString() == before


def test_a_graph_without_products_stays_as_it_is() -> None:
    """There is nothing to gain."""
    model = transformer()
    del model.graph.node[5:]
    model.graph.output[0].name = "words"
    before = model.SerializeToString()
    assert not fold_padding(model)
    assert model.SerializeToString() == before


def test_a_graph_of_which_little_can_be_folded_stays_as_it_is() -> None:
    """Where most products take the rectangle all the same, padding is not free."""
    model = transformer()
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in ("key", "value", "out", "up"):
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    before = model.SerializeToString()
    assert not fold_padding(model)
    assert model.SerializeToString() == before


def test_names_that_an_exporter_wrote_down_do_not_matter() -> None:
    """Stored shapes call the batch and the length what they like."""
    model = transformer()
    model.graph.value_info.append(
        helper.make_tensor_value_info(
            "words", TensorProto.FLOAT, ["batch_size", "sequence_length", WIDTH]
        )
    )
    np.testing.assert_array_equal(Vectors(folded(model))(SOME), BOTH[0](SOME))


def test_what_a_subgraph_reads_is_unfolded() -> None:
    """A branch that captures a rectangle from outside finds it."""
    model = transformer()
    rectangle = helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["below"], ["branch"])], "branch", [], [rectangle]
    )
    condition = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(condition)
    for at, node in enumerate(model.graph.node):
        if node.output[0] == "hidden":
            node.input[0] = "chosen"
            choice = helper.make_node(
                "If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch
            )
            model.graph.node.insert(at, choice)
            break
    np.testing.assert_array_equal(Vectors(folded(model))(SOME), BOTH[0](SOME))


def test_a_graph_without_a_mask_stays_as_it_is() -> None:
    """Nothing tells padding from tokens."""
    model = transformer()
    model.graph.input[1].name = "something_else"
    assert not fold_padding(model)


def test_other_vectors_are_noticed() -> None:
    """One bit in one row of one batch is enough."""

    def plain(batch: Sequence[Sequence[int]]) -> Float32:
        return np.array([[sum(ids)] for ids in batch], np.float32)

    def padded(batch: Sequence[Sequence[int]]) -> Float32:
        rows = plain(batch)
        if len(batch) > 2:
            rows[1] = np.nextafter(rows[1], np.float32(np.inf))
        return rows

    assert same_vectors(plain, plain, VOCABULARY, 12)
    assert not same_vectors(plain, padded, VOCABULARY, 12)
