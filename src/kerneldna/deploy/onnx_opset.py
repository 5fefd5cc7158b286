"""An ONNX network in an older opset than torch's exporter writes, for runtimes that read no newer one.

Most operators are the same in both, or newer ones may only take further types. What changed: reductions take their axes as an input
from opset 18 on, and attributes were added, which can go where they have their default. An operator that the older opset lacks,
or a setting that it cannot say, is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kerneldna.deploy.expand import drop_unused

if TYPE_CHECKING:
    from onnx import ModelProto

WRITTEN = 18  # the oldest that the exporter writes
OLDEST = 13  # below it int8 weights have no scale for each channel


def lower_(model: ModelProto, opset: int) -> None:
    """Write `model`, in place, in an older opset.

    Args:
        model: A network in opset 18.
        opset: From 13 to 17.

    Raises:
        ValueError: If an operator cannot be said in it; the message names the operator.
    """
    import onnx
    from onnx import helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"opset {opset} was asked for; {node.op_type} of {node.domain!r} is in none of ONNX's own"
            )
        try:
            known = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError as error:
            raise ValueError(
                f"opset {opset} was asked for, which has no {node.op_type}; this network needs a newer one"
            ) from error
        _axes_as_attribute(node, constants, known)
        newest = onnx.defs.get_schema(node.op_type, WRITTEN, "")
        for attribute in [each for each in node.attribute if each.name not in known.attributes]:
            if not _means_nothing(node, attribute, newest, constants):
                raise ValueError(
                    f"opset {opset} was asked for, whose {node.op_type} has no {attribute.name}; this network needs a newer one"
                )
            node.attribute.remove(attribute)
        while len(node.input) > known.max_input:
            if node.input[-1]:
                raise ValueError(
                    f"opset {opset} was asked for, whose {node.op_type} takes {known.max_input} inputs, not {len(node.input)}; "
                    "this network needs a newer one"
                )
            del node.input[-1]
    drop_unused(model.graph)
    for imported in list(model.opset_import):
        if imported.domain not in ("", "ai.onnx"):
            model.opset_import.remove(imported)
        else:
            imported.version = opset
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)


def _axes_as_attribute(node: Any, constants: dict[str, Any], known: Any) -> None:
    """Give a reduction its axes as an attribute, if that is how the older opset knows them."""
    from onnx import helper, numpy_helper

    if len(node.input) < 2 or "axes" not in known.attributes or node.input[1] not in constants:
        return
    axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    node.attribute.append(helper.make_attribute("axes", axes))
    del node.input[1]


def _means_nothing(node: Any, attribute: Any, newest: Any, constants: dict[str, Any]) -> bool:
    """Whether an attribute can be left out: it has its default, or says what is so anyway."""
    from onnx import helper, numpy_helper

    if node.op_type == "Split" and attribute.name == "num_outputs":
        return True  # as many as the node has
    if node.op_type == "Reshape" and attribute.name == "allowzero":
        shape = constants.get(node.input[1])
        return not attribute.i or (shape is not None and 0 not in numpy_helper.to_array(shape))
    default = newest.attributes[attribute.name].default_value
    return bool(default.name) and helper.get_attribute_value(default) == helper.get_attribute_value(attribute)
