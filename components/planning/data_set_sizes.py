"""How many records published data sets have, which a plan cannot count."""

RECORDS = {  # of the training split, by name on the Hub; from the sets' cards there
    "Anthropic/hh-rlhf": 160_800,
    "HuggingFaceH4/ultrachat_200k": 207_865,
    "HuggingFaceH4/ultrafeedback_binarized": 61_135,
    "databricks/databricks-dolly-15k": 15_011,
    "stanfordnlp/SHP": 348_718,
    "tatsu-lab/alpaca": 52_002,
}
