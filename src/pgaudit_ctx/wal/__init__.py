"""From bytes to changes, pure: no socket, no clock, no driver.

``frames`` takes the streaming replication protocol apart, ``pgoutput`` the messages inside,
``table`` and ``values`` turn tuples into JSON text, ``stitcher`` joins changes and contexts.
"""
