//! The conformance list on the engine without VMs: the real host and the real guest, in milliseconds.

bouvet_e2e::conform!(bouvet_e2e::site::Site::fake);
