"""Which parameters are meant: the last layer (head, head_weights), and groups by depth (groups).

And what the network puts out there: the features of the last layer and of the stages (features).
"""
