"""Another company's service, as far as the shop knows: it keeps invoices and charges cards, over HTTP.

It is served by the same project so that the demo needs no second one. The shop knows its address and nothing else.
"""
