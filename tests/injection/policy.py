"""Evaluates a MutatingAdmissionPolicy as kube-apiserver does, with cel-expr-python.

Reads {"policy", "bindings", "cases": [{"pod", "definitions", "namespace"}]} as JSON, and writes for
each case the pod that the API server would store, and the errors that failurePolicy hides.
"""

import copy
import json
import sys

import jsonpatch
import re2
from cel_expr_python import cel
from cel_expr_python.ext import ext_optional, ext_strings
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, struct_pb2

T = cel.Type
# The types that kube-apiserver keeps for a variable. It makes all others dynamic.
KEPT = ("BOOL", "INT", "STRING", "LIST", "MAP")


def function(name, parameters, result, implementation, is_member=True):
    """A function of Kubernetes' CEL libraries."""
    overload = cel.Overload(
        id=name, return_type=result, parameters=parameters, is_member=is_member, impl=implementation
    )
    return cel.FunctionDecl(name, [overload])


# https://kubernetes.io/docs/reference/using-api/cel/
FUNCTIONS = [
    function(
        "findAll",
        [T.STRING, T.STRING],
        T.List(T.STRING),
        lambda text, pattern: [match.group() for match in re2.finditer(pattern, text)],
    ),
    function(
        "listIndexOf",
        [T.LIST, T.STRING],
        T.INT,
        lambda items, item: items.index(item) if item in items else -1,
    ),
]
# Those that only mutations may use, like the message JSONPatch: the API server refuses a policy whose
# conditions or variables use them.
OF_MUTATIONS = [
    function(
        "jsonpatch.escapeKey",
        [T.STRING],
        T.STRING,
        lambda key: key.replace("~", "~0").replace("/", "~1"),
        is_member=False,
    ),
]
STRINGS = ext_strings.ExtStrings(2)


def descriptors():
    """The message JSONPatch, which kube-apiserver defines for mutations."""
    pool = descriptor_pool.DescriptorPool()
    struct = descriptor_pb2.FileDescriptorProto()
    struct_pb2.DESCRIPTOR.CopyToProto(struct)
    pool.Add(struct)
    file = descriptor_pb2.FileDescriptorProto(
        name="jsonpatch.proto", syntax="proto3", dependency=[struct.name]
    )
    message = file.message_type.add(name="JSONPatch")
    string, optional = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, 1
    for number, name in enumerate(["op", "path", "from"], 1):
        message.field.add(name=name, number=number, type=string, label=optional)
    message.field.add(
        name="value",
        number=4,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".google.protobuf.Value",
        label=optional,
    )
    pool.Add(file)
    return pool


class Policy:
    """A compiled policy."""

    def __init__(self, policy):
        spec = policy["spec"]
        self.types = {"object": T.DYN, "params": T.DYN, "request": T.DYN}
        self.conditions = [self.compile(c["expression"], T.BOOL) for c in spec["matchConditions"]]
        self.variables = []
        for variable in spec["variables"]:
            name = "variables." + variable["name"]
            expression = self.compile(variable["expression"])
            kind = expression.return_type()
            self.variables.append((name, expression))
            self.types[name] = kind if kind.name().upper() in KEPT else T.DYN
        mutations = [m["jsonPatch"]["expression"] for m in spec["mutations"]]
        self.mutations = [self.compile(text, is_mutation=True) for text in mutations]

    def compile(self, text, kind=None, is_mutation=False):
        """Checks the types, too."""
        env = cel.NewEnv(
            descriptor_pool=descriptors() if is_mutation else None,
            variables=self.types,
            extensions=[STRINGS, ext_optional.ExtOptional()],
            functions=FUNCTIONS + (OF_MUTATIONS if is_mutation else []),
        )
        # cel-expr-python cannot add an overload to a function of the strings library.
        expression = env.compile(text.replace(".indexOf(", ".listIndexOf("))
        if kind is not None and expression.return_type() not in (kind, T.DYN):
            raise TypeError(f"{expression.return_type()}: {text}")
        return expression

    def mutate(self, pod, definition, namespace):
        """One evaluation."""
        data = {"object": pod, "params": definition, "request": {"namespace": namespace}}
        if not all(evaluate(condition, data) for condition in self.conditions):
            return pod
        for name, expression in self.variables:
            data[name] = evaluate(expression, data)
        for expression in self.mutations:
            operations = evaluate(expression, data)
            pod = jsonpatch.apply_patch(pod, [json_format.MessageToDict(o) for o in operations])
        return pod


def evaluate(expression, data):
    """The value of an expression, whose errors end the evaluation."""
    value = expression.eval(data=data)
    if value.type() == T.ERROR:
        raise ValueError(value.value())
    return value.plain_value()


def selects(binding, namespace):
    """Whether a binding applies to the pods of a namespace."""
    selector = binding["spec"].get("matchResources", {}).get("namespaceSelector", {})
    return all(namespace not in rule["values"] for rule in selector.get("matchExpressions", []))


def admit(policy, bindings, case):
    """What is stored of a pod, and what failed on the way."""
    pod, namespace, errors = copy.deepcopy(case["pod"]), case["namespace"], []
    for binding in bindings:
        if not selects(binding, namespace):
            continue
        of = binding["spec"]["paramRef"].get("namespace", namespace)
        for definition in case["definitions"]:
            if definition["metadata"]["namespace"] != of:
                continue
            try:
                pod = policy.mutate(pod, definition, namespace)
            except Exception as error:  # pylint: disable=broad-exception-caught
                errors.append(str(error))
    return {"pod": pod, "errors": errors}


def main():
    """Reads the cases, writes what becomes of them."""
    asked = json.load(sys.stdin)
    policy = Policy(asked["policy"])
    json.dump([admit(policy, asked["bindings"], case) for case in asked["cases"]], sys.stdout)


main()
