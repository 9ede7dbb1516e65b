"""What a GPU makes of a graph of 16 bits, on a CPU whose runtime computes it otherwise or not at all.

GPUs multiply and add in float32 and round what they store. onnxruntime on a CPU runs a float16 graph in float32 from
end to end, so that neither its rounding nor an overflow shows, and has no bfloat16.
"""

from typing import Any


def rounded_model(model: Any) -> Any:
    """The graph in float32, in which every value of 16 bits is rounded to them when it has been computed.

    Args:
        model: an onnx.ModelProto whose input and output meet casts alone, as `PlainNetwork` has it; it is changed.
    """
    import onnx  # noqa: PLC0415 - optional

    short, single = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16), onnx.TensorProto.FLOAT
    ends = {end.name for end in model.graph.output}
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in graph.value_info}
    for weight in model.graph.initializer:
        if weight.data_type in short:
            values = onnx.numpy_helper.to_array(weight).astype("float32")
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    nodes = []
    for node in model.graph.node:
        results = [name for name in node.output if types.get(name) in short and name not in ends]
        node.output[:] = [f"{name}/exact" if name in results else name for name in node.output]
        nodes.append(node)
        for name in results:
            nodes.append(onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=types[name]))
            nodes.append(onnx.helper.make_node("Cast", [f"{name}/rounded"], [name], to=single))
    del model.graph.value_info[:]
    copies = onnx.helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)
    return model
