"""What the site's reading of the docstrings (griffe) has to know of ours."""

import re

import griffe

EXAMPLE = re.compile(r"^Example:\n((?:.*\S.*\n?)+)", re.M)


class KerasStyle(griffe.Extension):
    """Examples as Keras writes them, and a class whose arguments `__new__` takes."""

    def on_instance(self, *, obj, **kwargs):
        """Makes a section of lines of code after `Example:`, which Keras does not indent."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(in_a_section, obj.docstring.value)

    def on_class_members(self, *, cls, **kwargs):
        """Takes the parameters of `__new__`, where a class has one, for those of the class."""
        if "__new__" in cls.members:
            cls.members["__init__"] = cls.members["__new__"]


def in_a_section(match):
    """`Examples:` and the lines, indented."""
    return "Examples:\n" + re.sub(r"^", "    ", match[1], flags=re.M)
