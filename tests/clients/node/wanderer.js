// A Minecraft client in offline mode that plays: joins, walks, speaks, and counts what the server sends, until it has seen
// enough chunks of the world and enough keep-alives.
// node wanderer.js --port P [--name N] [--say TEXT] [--chunks N] [--keep-alives N]; prints one JSON line.
'use strict'
const mc = require('minecraft-protocol')
const { parseArgs } = require('node:util')

const { values: chosen } = parseArgs({
  options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string' },
    name: { type: 'string', default: 'Wanderer' },
    say: { type: 'string', default: 'hello' },
    version: { type: 'string', default: '1.20.3' },
    chunks: { type: 'string', default: '9' },
    'keep-alives': { type: 'string', default: '2' },
    deadline: { type: 'string', default: '60' }
  }
})

const began = Date.now()
const counts = {}
const happened = { joined: false, heard: null, steps: 0, kicked: null, error: null }
function finish () {
  process.stdout.write(JSON.stringify({ ...happened, seconds: (Date.now() - began) / 1000, counts }) + '\n', () => process.exit())
}

const client = mc.createClient({
  host: chosen.host, port: Number(chosen.port), username: chosen.name, auth: 'offline', version: chosen.version
})
setTimeout(() => { happened.error ??= 'not enough was seen before the deadline'; finish() }, Number(chosen.deadline) * 1000)

let place = null
client.on('packet', (data, meta) => {
  counts[meta.name] = (counts[meta.name] ?? 0) + 1
  const enough = happened.heard && counts.map_chunk >= Number(chosen.chunks) && counts.keep_alive >= Number(chosen['keep-alives'])
  if (enough && happened.steps >= 20) { client.end('done'); finish() }
})
client.on('login', () => {
  happened.joined = true
  client.write('chat_message', {
    message: chosen.say, timestamp: BigInt(Date.now()), salt: 0n, offset: 0, acknowledged: Buffer.alloc(3)
  })
})
client.on('position', (packet) => {
  client.write('teleport_confirm', { teleportId: packet.teleportId })
  if (place === null) setInterval(step, 100)
  place = { x: packet.x, y: packet.y, z: packet.z }
})
function step () {
  place.x += 0.2
  happened.steps += 1
  client.write('position', { ...place, onGround: true })
}
for (const kind of ['system_chat', 'player_chat', 'profileless_chat']) {
  client.on(kind, (packet) => {
    const text = JSON.stringify(packet, (_, value) => typeof value === 'bigint' ? String(value) : value)
    if (text.includes(chosen.say)) happened.heard = text
  })
}
for (const kind of ['disconnect', 'kick_disconnect']) {
  client.on(kind, (packet) => { happened.kicked = JSON.stringify(packet); finish() })
}
client.on('error', (error) => { happened.error = String(error); finish() })
client.on('end', (reason) => { happened.error ??= `the connection ended: ${reason}`; finish() })
