//! What a guest that breaks the rules is answered, and that its neighbours do not notice.
