"""WorldModel: network, parameterization, conditions and tokenizer with one loss, one `denoise` and one `sample`.

Also the published models by name. Imports `conditions` and the parts below it; `checkpoint`, `parallel`, `training`,
`pipelines` and `cli` may import it.
"""
