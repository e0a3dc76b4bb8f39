def take_pictures():
    pass
