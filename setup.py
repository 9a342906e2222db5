"""The one thing pyproject.toml cannot say: find the packages, add presets/."""

import setuptools

setuptools.setup(
    packages=[
        *setuptools.find_packages(include=["keras_audiolm*"]),
        "keras_audiolm.presets",
    ],
    # The top-level presets/ folder travels inside the package, where
    # keras_audiolm/_bundled.py finds it.
    package_dir={"keras_audiolm.presets": "presets"},
    package_data={
        "keras_audiolm.evaluation": ["*.html"],
        "keras_audiolm.presets": ["**/*.json", "**/*.h5", "**/*.md"],
    },
)
