"""What `conf/` builds for the example: long-tailed data sets, networks, the classification task, the report.

Nothing here is needed to use the library, and `import lightning_fair` does not import it. It wants the extra
`pip install "lightning-fair[examples]"`.
"""
