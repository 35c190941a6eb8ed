"""VBench, through the official package in an environment of its own.

The package (vbench 0.1.5; Huang et al., CVPR 2024) pins a transformers and a numpy that the suite cannot run on, so
nothing here imports it: `environment` makes the environment, `inside` is the script that runs in it, `suite` knows the
16 dimensions and what each loads, `scoring` scores videos, `totals` combines the dimensions.
"""
