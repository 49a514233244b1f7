// A Minecraft client in offline mode: joins, says a line, waits until the server repeats it, leaves.
// node client.js --port P [--host H] [--from H] [--name N] [--say TEXT] [--address NAME]; prints one JSON line with what happened.
// With --stay it goes on: every line on standard input is said, all that is heard is printed as a JSON line of its own,
// and the last line says how it ended.
'use strict'
const mc = require('minecraft-protocol')
const { parseArgs } = require('node:util')

const { values: chosen } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string' },
    address: { type: 'string' }, // the name in the handshake, as if DNS had led here
    name: { type: 'string', default: 'Player' },
    say: { type: 'string', default: 'hello' },
    version: { type: 'string', default: '1.20.4' },
    from: { type: 'string' }, // the address to come from
    stay: { type: 'boolean', default: false },
    deadline: { type: 'string', default: '30' }
  }
})

const happened = { joined: false, heard: null, kicked: null, error: null }
let finished = false
function finish () {
  if (finished) return
  finished = true
  process.stdout.write(JSON.stringify(happened) + '\n', () => process.exit(happened.heard ? 0 : 1))
}

const net = require('node:net')
const client = mc.createClient({
  host: chosen.address ?? chosen.host,
  port: Number(chosen.port),
  username: chosen.name,
  auth: 'offline',
  version: chosen.version,
  connect: (client) => client.setSocket(net.connect({
    port: Number(chosen.port), host: chosen.host, localAddress: chosen.from
  }, function () {
    this.setNoDelay(true)
    client.emit('connect')
  }))
})
if (!chosen.stay) setTimeout(() => { happened.error ??= 'nothing more happened before the deadline'; finish() }, Number(chosen.deadline) * 1000)

const textOf = (packet) => JSON.stringify(packet.reason ?? packet.content ?? packet.formattedMessage ?? packet)

function say (message) {
  client.write('chat_message', {
    message, timestamp: BigInt(Date.now()), salt: 0n, offset: 0, acknowledged: Buffer.alloc(3)
  })
}

client.on('login', () => {
  happened.joined = true
  say(chosen.say)
  if (chosen.stay) require('node:readline').createInterface({ input: process.stdin }).on('line', say)
})
client.on('system_chat', (packet) => {
  const text = textOf(packet)
  if (chosen.stay) return process.stdout.write(JSON.stringify({ heard: text }) + '\n')
  if (text.includes(chosen.say)) { happened.heard = text; client.end('done'); finish() }
})
for (const kind of ['disconnect', 'kick_disconnect']) {
  client.on(kind, (packet) => { happened.kicked = textOf(packet); finish() })
}
client.on('error', (error) => { happened.error = String(error); finish() })
client.on('end', (reason) => { happened.error ??= `the connection ended: ${reason}`; finish() })
