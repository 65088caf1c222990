"""The classes that `conf/` builds: long-tailed data sets, networks, the classifier, baselines, reports and sweeps.

The library does not need this package. It needs the extra `pip install "lightning-fair[examples]"`.
"""
